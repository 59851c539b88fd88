"""The plots of the stories: name -> paragraphs -> sentence templates (see text.expand; a leading ? means: told every other time).

Slots: the hero {n} {kind} {he} {him} {his}, a friend {mn} {mfull} {mhe} {mhim} {mhis} {mwho}, a grown-up {adult} {ahe} {ahis}, a {look} {col} {thing}, two places
{spot} {at} {spot2} {at2}, two foods {food} {food2}, hiding places {hid} {hid2}, a {stuck} animal, a {big} one, the {time}.
"""

from __future__ import annotations

PLOTS: dict[str, list[list[str]]] = {
    "lost": [
        ["[{he} had a {look} {col} {thing}.|{n} loved {his} {col} {thing} more than anything.]", "?{he} [took it everywhere|played with it every day]."],
        [
            "{time}, {n} could not find the {thing}. {he} looked {hid}, but it was not there. {he} looked {hid2}, but it was not there either.",
            "[{n} began to cry.|{n} felt very sad.|\"Where is my {thing}?\" {he} asked.]",
            "[{n}'s friend {mn} came by.|Then {mfull} came to visit.] \"[Don't worry|Don't cry], I will help you look,\" said {mn}.",
        ],
        [
            "Together they went to the {spot}. [They looked high and low.|They looked everywhere.] [At last|Suddenly], {mn} saw something {col} {at}.",
            "It was the {thing}! \"[Thank you|You found it], {mn}!\" said {n}. [{he} hugged {his} friend.|{n} gave {mhim} a big hug.|They danced with joy.]",
            "?After that, {n} always put the {thing} back in its place.",
        ],
    ],
    "share": [
        ["{time}, {n} was [walking|sitting|resting] {at} with a basket of {food}.", "?The sun was [warm|bright] and the birds were singing."],
        [
            "There {he} met {mwho}. {mn} looked [sad|tired|hungry]. \"What is wrong?\" asked {n}. \"I have nothing to eat,\" said {mn}.",
            "[{n} thought for a moment.|{n} looked at the {food}.] There was not much, but {he} [smiled|nodded] and said, \"[We can share|Please have some].\"",
            "They ate the {food} together, and it tasted [better than ever|wonderful].",
        ],
        [
            "[The next day|A week later|Some days later], {n} [fell into a hole|got lost|could not carry a heavy bag] {at2}. {he} called for help.",
            "It was {mn} who [came running|heard {him}]. \"You helped me, and now I will help you,\" said {mn}.",
            "[{n} learned that kindness comes back.|Since then, the two have been best friends.|And they shared everything from then on.]",
        ],
    ],
    "afraid": [
        [
            "{n} was [happy|cheerful] most of the time, but {he} was afraid of [the dark|thunder|deep water|the {big}].",
            "?{he} did not want anyone to know.",
        ],
        [
            "{time}, [the sky turned grey|the wind began to blow|the lights went out]. {n} hid {hid} with {his} {thing}.",
            "{his} {adult} found {him} there. \"[Everyone is afraid sometimes|It is all right to be afraid],\" {ahe} said. \"[Let us count to ten|Let us sing a song|Hold my hand].\"",
            "So they [sat together|waited together] and [sang softly|counted slowly|told funny stories].",
        ],
        [
            "[Soon|After a while], {n} was not so afraid any more. [{he} even laughed.|{he} took a deep breath.]",
            "?The next time it happened, {n} [held {his} {thing} tightly and smiled|was the one who helped {mn}].",
            "\"[Being brave means trying even when you are afraid|You are very brave],\" said {his} {adult}.",
        ],
    ],
    "bake": [
        ["{time}, {n} wanted to make {food} for {his} {adult}.", "{mfull} came to help. [They washed their hands and found a big bowl.|They put on their hats.]"],
        [
            "[But they were in a hurry|They laughed and talked too much], and {mn} put in salt [instead of|and not] sugar.",
            "When {n} tasted it, {he} [made a funny face|cried, \"Oh no!\"|coughed]. \"It is [too salty|terrible]!\" {he} said.",
            "{mn} was sorry. \"[It was my mistake|I did not look],\" {mhe} said. \"[Never mind|It is all right],\" said {n}. \"We can try again.\"",
        ],
        [
            "This time they [read every word|worked slowly|tasted everything first]. The {food} came out [warm and sweet|just right|perfect].",
            "{n}'s {adult} [took one bite and smiled|ate it all|asked for more]. \"This is the best {food} I have ever had,\" {ahe} said.",
        ],
    ],
    "rescue": [
        ["{time}, {n} heard a small cry {at}. [{he} stopped and listened.|{he} ran to look.]"],
        [
            "A [little|tiny|poor] {stuck} was stuck in [the mud|a net|a hole|a tree]. \"[Help|Please help me]!\" it cried.",
            "[{n} pulled, but {he} was not strong enough.|{n} tried to reach it, but {he} was too small.] So {he} called {mfull}.",
            "{mn} brought a [rope|ladder|long branch], and together they [pulled|worked] until the {stuck} was free.",
        ],
        [
            "\"Thank you,\" said the {stuck}. \"[I will never forget you|You saved me].\" [It gave {n} a {look} {col} {thing}.|It gave them a {col} {thing} to share.]",
            "[{n} kept the {thing} for ever.|{n} felt proud all day.|{n} and {mn} waved until the {stuck} was gone.]",
        ],
    ],
    "race": [
        ["[Every summer there was a race from the {spot} to the {spot2}.|{time}, there was a big race from the {spot} to the {spot2}.]"],
        [
            "{mfull} was very fast. \"[Nobody can beat me|I will win]!\" {mhe} said. {n} was slow, but {he} wanted to try.",
            "When the race began, {mn} ran far ahead. [{mhe} was so sure of winning that {mhe} stopped for a nap.|Then {mhe} stopped to eat some {food}.]",
            "{n} did not stop. {he} went on, step by step, [up and down the road|over the hill|without a rest].",
        ],
        [
            "When {mn} [woke up|looked up], it was too late. {n} was the first to reach the {spot2}! [Everyone cheered.|The others clapped.]",
            "{n} won a {col} {thing}. [\"Slow and steady wins the race,\" said {his} {adult}.|{mn} said, \"You did well. I was too proud.\"]",
        ],
    ],
    "newcomer": [
        ["{time}, {mwho} moved into the house next door. [{mn} knew nobody.|{mn} was shy and stayed alone.]"],
        [
            "{n} saw {mhim} sitting alone {at}. \"[Would you like to play with me?|Do you want to see my {thing}?]\" asked {n}.",
            "[{mn} looked up and nodded.|{mn} was quiet at first. Then {mhe} smiled.] They played with the {thing} until [the sun went down|it was time for dinner].",
            "?{n} showed {mhim} the {spot2} too.",
        ],
        [
            "The next day, {mn} came to {n}'s door with some {food}. \"[This is for you, because you are my first friend here|Thank you for yesterday],\" {mhe} said.",
            "[Now they play together every day.|{n} was glad that {he} had said hello.|{mn} was never lonely again.]",
        ],
    ],
    "seed": [
        ["{time}, {his} {adult} gave {him} a tiny seed. \"[Be patient|Take good care of it],\" {ahe} said."],
        [
            "{n} put the seed in the ground [in the garden|behind the house|beside the door] and gave it water. The next day {he} looked, but nothing had happened. [Day after day nothing happened.|A week went by, and still there was nothing.]",
            "\"[It will never grow|I give up],\" said {mfull}. But {n} [did not give up|kept giving it water|sang to the seed every morning].",
        ],
        [
            "Then, [after the rain|one warm morning], there was a small green leaf! It grew and grew, until it was a [tall {col} flower|big apple tree|{col} rose|huge pumpkin].",
            "[Everyone came to see it.|{mn} could not believe it.] \"[Good things take time|You were so patient],\" said {n}'s {adult}.",
        ],
    ],
    "broken": [
        ["{time}, {n} was playing with a {thing} in the house, although {his} {adult} had said not to."],
        [
            "Crash! [{his} {adult}'s best vase|The big {col} lamp|The {col} bowl] fell down and broke. {n} was frightened. [{he} wanted to hide the pieces {hid}.|{he} thought about running away.]",
            "\"[You could say that the cat did it|Nobody saw you],\" said {mn}. But {n} shook {his} head. [That would be a lie.|\"No,\" {he} said, \"that is not right.\"]",
            "{he} went to {his} {adult} and said, \"I broke it. I am sorry.\"",
        ],
        [
            "{his} {adult} was [quiet for a moment|a little sad], but then {ahe} [smiled|hugged {him}]. \"Thank you for telling the truth,\" {ahe} said.",
            "[Together they mended it with glue.|They swept up the pieces together.] [{n} felt much better.|{n} was glad that {he} had been honest.]",
        ],
    ],
    "treasure": [
        ["{time}, {n} found an old map {hid}. There was a {col} cross on it. \"[A treasure|It must be a treasure]!\" {he} cried."],
        [
            "{n} and {mfull} followed the map. They went [past|around] the {spot}, [over|across] the [wooden bridge|stones], and all the way to the {spot2}.",
            "?{mn} was tired, but {n} said, \"[Just a little further|We are nearly there].\"",
            "There they began to dig. [They dug and dug.|They dug a deep hole.] At last they found a [wooden|heavy|dusty] box.",
        ],
        [
            "Inside the box there was no gold. There was only a {look} {thing} and a letter. \"[The real treasure is the friend who came with you|Share this with a friend],\" it said.",
            "{n} and {mn} [looked at each other and laughed|smiled]. [They took turns with the {thing}.|They carried the {thing} home together.]",
        ],
    ],
    "learn": [
        ["[More than anything, {n} wanted to learn to [swim|dance|sing|whistle|skate|paint|play the drum].|{n} wanted to learn how to [swim|dance|skate|play the flute].]"],
        [
            "{time}, {he} tried for the first time, but it went [wrong|very badly]. [{mn} laughed at {him}.|{he} fell down.] {n} went home with tears in {his} eyes.",
            "\"[Nobody is good at first|I could not do it at first either],\" said {his} {adult}. \"[Try a little every day|Try again tomorrow].\"",
            "So {n} tried every day [after breakfast|before dinner|when nobody was looking|]. [Some days were good and some were bad.|Slowly {he} got better.]",
        ],
        [
            "When [summer|winter|spring] came, {n} could do it! [Everyone clapped.|Even {mn} was surprised.] \"[Can you teach me?|How did you do it?]\" asked {mn}.",
            "\"[Of course|With pleasure],\" said {n}. \"You only have to [keep trying|try every day].\"",
        ],
    ],
    "wish": [
        ["{time}, {n} found a {look} {col} {thing} {at}. When {he} picked it up, a voice said, \"You have one wish.\""],
        [
            "[{n} thought and thought.|{n} did not have to think for long.] \"I wish for [a mountain|a house full] of {food}!\" {he} said.",
            "[Puff!|At once,] there was {food} everywhere. [It covered the bed and the table.|It filled the whole house.] At first {n} was [happy|delighted]. But soon {he} could not [move|even open the door].",
            "\"[This is too much|I did not want so much],\" said {n}. {he} [called|asked] {mn} and all the neighbours to come and eat.",
        ],
        [
            "They had a great feast, and in the end [nothing|only a little] was left. {n} [put the {thing} back where it had been|threw the {thing} far away].",
            "\"[A little is enough|Enough is better than too much],\" {he} said.",
        ],
    ],
    "birthday": [
        ["It was {n}'s birthday, but [nobody said a word|everybody seemed to have forgotten]. {his} {adult} [was busy|had gone to the market]."],
        [
            "{n} went to see {mn}, but {mn} was not at home. {he} went to the {spot}, but there was nobody {at}. \"[They have all forgotten me|Nobody thinks of me],\" {he} said.",
            "[Slowly {n} walked home.|Sadly, {he} went home.] The house was dark. {n} opened the door.",
        ],
        [
            "\"Surprise!\" [everyone shouted|they all shouted]. There were {col} balloons and a big cake. {mfull} gave {him} a {look} {thing}.",
            "[\"We wanted to surprise you,\" said {mn}.|\"We would never forget you,\" said {his} {adult}.] {n} [laughed and cried at the same time|had never been so happy].",
        ],
    ],
    "prank": [
        ["{n} loved to play tricks. {time}, {he} shouted, \"Help! There is a {big} {at}!\""],
        [
            "{mn} and the others came running, but there was no {big}. {n} laughed. \"[I tricked you|It was only a joke]!\" {he} said. [The others were angry.|{mn} did not think it was funny.]",
            "?The next day {he} did it again.",
            "But then a real {big} came! \"Help! [Please come|It is true this time]!\" shouted {n}. This time nobody came.",
        ],
        [
            "{n} had to [climb a tree|hide {hid}|run as fast as {he} could]. The {big} took {his} {thing} and went away.",
            "{n} said sorry to everyone. \"[I will not lie again|Now I know why the truth matters],\" {he} said.",
        ],
    ],
    "wayhome": [
        ["{time}, {n} went to the {spot} to [look for {food}|play]. {he} went further and further, until {he} did not know the way home."],
        [
            "It was getting dark. [The trees looked like giants.|The wind was cold.] {n} [sat down and cried|was frightened|held {his} {thing} tightly].",
            "An old owl looked down. \"[Why are you crying?|Are you lost?]\" it asked. \"I cannot find my way home,\" said {n}.",
            "\"[Follow the river|Follow the brightest star|Follow the white stones],\" said the owl, \"and it will take you to the {spot2}. From there you know the way.\"",
        ],
        [
            "{n} did what the owl had said. [Soon|After a long walk] {he} saw the {spot2}, and then the lights of {his} home.",
            "{his} {adult} was waiting at the door with warm {food}. \"[I was so worried|There you are]!\" {ahe} said and [held {him} tight|kissed {him}].",
        ],
    ],
    "winter": [
        ["[All summer long|When autumn came], {n} gathered {food} for the winter. {mfull} only [played|sang|slept in the sun]."],
        [
            "\"[Come and play!|Why do you work so hard?]\" asked {mn}. \"Winter is coming,\" said {n}. \"[You should work too|We will need food].\" But {mn} only laughed.",
            "Then the snow came. [The {spot} was white and the pond was frozen.|Everything was cold and white.] {mn} had nothing to eat. {mhe} knocked at {n}'s door.",
        ],
        [
            "\"[Please|I was foolish], may I come in?\" asked {mn}. {n} [opened the door|smiled]. \"Come in and warm yourself,\" {he} said. \"[There is enough for two|We will share].\"",
            "The next summer, {mn} [worked harder than anyone|was the first to gather {food}], and [there was still time to play|they both had plenty].",
        ],
    ],
    "gift": [
        ["It was almost [{mn}'s birthday|the day of the big party], and {n} had no money for a present."],
        [
            "{n} looked in the shop window, but everything [cost too much|was too expensive].",
            "\"[A gift does not have to cost money|You could make something],\" said {his} {adult}. So {n} [took paper, wood and paint|found some wood and some {col} paint] and worked all night.",
            "In the morning there was a {look} {col} {thing}. It was [not perfect|a little crooked], but {n} had made it all alone.",
        ],
        [
            "{mn} opened the present [slowly|last]. \"[Did you make this for me?|You made this?]\" {mhe} asked. \"It is the best present of all.\"",
            "?{mn} [carries the {thing} everywhere|put the {thing} beside {mhis} bed].",
        ],
    ],
    "quarrel": [
        ["{time}, {n} and {mn} found a {look} {thing} {at}. \"It is mine!\" said {n}. \"No, it is mine!\" said {mn}."],
        [
            "They pulled and pulled, until, [crack|snap], the {thing} broke in two. [Now nobody could play with it.|They stared at the pieces.]",
            "\"[It is your fault|Look what you did]!\" they both shouted. They went home and did not speak for [two days|a whole week|three days].",
            "But {n} [missed {his} friend|felt lonely]. {he} took {his} piece and went to {mn}. {mn} was already on the way with the other piece.",
        ],
        [
            "\"I am sorry,\" said {n}. \"I am sorry too,\" said {mn}. They [mended the {thing} with glue|put the pieces together with {col} string].",
            "[It was not as pretty as before, but now it belonged to both of them.|From then on they took turns.]",
        ],
    ],
    "moon": [
        ["[Every night|At night], {n} looked up at the moon. \"[Is the moon lonely?|Why does the moon shine?|Who lives on the moon?]\" {he} asked."],
        [
            "{his} {adult} did not know. {mfull} did not know either. So, {time}, {n} climbed [to the top of the hill|the tallest tree] and called, \"Hello, moon!\"",
            "[The moon seemed to smile.|A soft voice answered.] \"[I am not lonely|I shine so that you can find your way],\" said the moon, \"[because you look at me every night|and you keep me company].\"",
        ],
        ["{n} [waved|bowed] and went home. {he} put {his} {col} {thing} by the window, so that the moon could see it.", "?Since then {n} has never been afraid of the night."],
    ],
    "boat": [
        ["{time}, {n} and {mfull} built a small boat. They painted it {col} and put [a flag|a {thing}] on it."],
        [
            "They pushed the boat into the water and [sailed away|began to row]. [The sun was shining and the water was calm.|Small fish swam beside them.]",
            "Suddenly a strong wind came, and the waves grew [high|big]. Water came into the boat! \"[Quick|Hurry]!\" shouted {n}. \"Use [the cup|your hat|the bucket]!\"",
            "They threw out the water as fast as they could, and {mn} [rowed|pulled] with all {mhis} strength.",
        ],
        [
            "At last they reached the shore. They were [wet and cold|tired], but [safe|proud]. {n}'s {adult} brought them blankets and hot soup.",
            "\"[Next time, look at the sky first|You were a good team],\" {ahe} said.",
        ],
    ],
    "noise": [
        ["One night, {n} woke up. There was a strange noise {hid}. [Tap, tap, tap.|Scratch, scratch.|Thump, thump.]"],
        [
            "\"[Who is there?|What is that?]\" {he} whispered. Nobody answered. {n} thought of a [{big}|ghost|thief]. {he} took {his} {thing} and [went slowly down the stairs|lit a candle].",
            "[{his} heart was beating fast.|Step by step {he} came closer.] Then {he} [looked|bent down].",
        ],
        [
            "It was [only|just] a [little|tiny] {stuck}! It was [cold|hungry|lost] and looked at {him} with big eyes. {n} laughed. \"[You frightened me|So it was you]!\" {he} said.",
            "{he} gave it some {food} and a warm place to sleep. In the morning, {his} {adult} said, \"[You may keep it|We will look for its mother].\"",
        ],
    ],
    "helper": [
        ["{time}, {n} met an old [farmer|baker|woman|man|fisherman] {at}. [The poor soul was carrying a heavy bag.|The poor soul looked very tired.]"],
        [
            "{mn} walked past and did not stop. But {n} said, \"[May I help you?|Let me carry that.]\" So {he} carried the bag [all the way to the {spot2}|up the hill].",
            "It was hard work, and {n} [was late for dinner|missed the game], but {he} did not complain.",
        ],
        [
            "\"[You have a good heart|Thank you, my friend],\" came the answer. \"Take this {thing}. It is [old|small], but it brings luck.\"",
            "?{mn} was sorry that {mhe} had not stopped.",
            "And it was true: from that day on, {n} [found friends wherever {he} went|was lucky in everything {he} did].",
        ],
    ],
    "trade": [
        ["{time}, {n} wanted {food}, but {he} had only a {col} {thing}."],
        [
            "{he} went to the {spot} and met {mfull}. \"Will you give me {food} for my {thing}?\" asked {n}. \"I have no {food}, only {food2},\" said {mn}. \"[But I like your {thing}|Your {thing} is lovely].\"",
            "So {n} gave {mn} the {thing} and got {food2}. Then {he} went to the {spot2}. There {he} met a {stuck} who had {food} but wanted {food2}.",
        ],
        [
            "They changed again, and now {n} had {food}. {he} [sat down and ate|took it home to {his} {adult}].",
            "?In the evening, {mn} came by with the {thing}. \"[We can both play with it|It is more fun with you],\" {mhe} said.",
            "[Everyone had what they wanted.|It was a good day for all three.]",
        ],
    ],
    "rainy": [
        ["{n} and {mfull} wanted to go to the {spot}. They packed {food}, {food2} and a {thing}."],
        [
            "But when they opened the door, it was raining. [It rained and rained.|Big drops fell from the sky.] \"[Our day is ruined|Now we cannot go],\" said {mn}.",
            "{n} looked around the room. \"I have an idea,\" {he} said. {he} [put a {col} blanket over two chairs|built a tent out of chairs]. \"This is our {spot}!\"",
            "They sat inside and ate the {food}. [They played with the {thing} and told stories.|They sang all the songs they knew.]",
        ],
        [
            "When the sun came out again, they [did not even notice|were having too much fun to leave]. [A rainbow stood over the {spot}.|There was a rainbow in the sky.]",
            "\"[This was the best rainy day ever|Rain is not so bad],\" said {mn}.",
        ],
    ],
}
