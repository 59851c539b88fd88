"""Texts with a label: sentiment (positive, negative, neutral) and topic (ten of them).

A sentiment text says one or two things about a product or a place; "but" turns the verdict round, "not" turns a word round. The pair
(thing, opinion) decides the split; for topics it is (who, what happens).
"""

from __future__ import annotations

from random import Random

from .text import expand, held_out, pick

ABOUT = [
    "film", "book", "hotel", "restaurant", "phone", "concert", "shop", "coffee", "soup", "train ride", "camera", "lamp", "show", "song",
    "jacket", "game", "museum", "bakery", "film festival", "dinner", "view", "car", "sofa", "cake", "blanket", "story", "teacher", "tea",
    "lesson", "holiday", "garden", "radio", "chair", "pizza", "toy", "bicycle", "party", "service", "bed", "breakfast",
]
GOOD = [
    "wonderful", "great", "excellent", "lovely", "perfect", "amazing", "delightful", "very good", "fantastic", "a real pleasure",
    "worth every penny", "better than I had hoped", "a nice surprise", "just what I needed", "the best I have ever had", "so much fun",
    "really pleasant", "beautiful", "brilliant", "superb", "charming", "splendid", "nice", "marvellous", "good value", "well made",
    "a joy",
]
BAD = [
    "terrible", "awful", "boring", "very bad", "disappointing", "horrible", "a waste of money", "a waste of time",
    "worse than I had feared", "far too expensive", "a big mistake", "the worst I have ever had", "broken after one day",
    "really unpleasant", "ugly", "rather poor", "annoying", "useless", "dreadful", "poor", "unpleasant", "nasty", "dull", "miserable",
    "badly made", "a disaster", "full of mistakes",
]
PRAISE = [
    "I loved it", "I would buy it again", "I can only recommend it", "my whole family enjoyed it", "I smiled all day",
    "I will come back soon", "thank you so much", "it made me happy", "everything worked well", "I am very pleased with it",
    "my friends were delighted", "I want another one", "five stars", "what a great day", "I am happy that I tried it", "it was a success",
]
BLAME = [
    "I hated it", "I want my money back", "I cannot recommend it", "nobody enjoyed it", "I was bored all day", "I will never come back",
    "stay away from it", "it made me angry", "nothing worked", "I am very unhappy with it", "my friends were disappointed", "never again",
    "one star at most", "what a terrible day", "I am sorry that I tried it", "it was a failure",
]
FACTS = [
    "opened in May", "is near the station", "has two parts", "is blue and white", "costs ten dollars", "is on the second floor",
    "was made in Italy", "weighs one kilo", "starts at eight", "comes with a small box", "is open on Sunday", "was here last year",
    "belongs to my neighbour", "is the same as before", "will be ready on Monday", "is made of wood", "lasts one hour",
    "is called Sunrise",
]
MORE_FACTS = [
    "It opens at nine", "There are four of them in our street", "My sister has one too", "We went there on Tuesday",
    "It stands next to the door", "I bought it in June", "The other one is green", "It takes about an hour",
    "You can find it in the old town", "There is a second one in the city",
]

TOPICS: dict[str, tuple[list[str], list[str]]] = {
    "sports": (
        ["the team", "the goalkeeper", "our captain", "the young runner", "the coach", "the tennis player", "the swimmer", "the champion"],
        ["won the match by two goals", "trained for the final", "scored in the last minute", "lost the game", "broke the world record",
            "ran the race in ten seconds", "jumped higher than ever", "celebrated the cup"],
    ),
    "food": (
        ["the cook", "my grandmother", "the baker", "the new restaurant", "our chef", "the kitchen team", "the waiter", "the pastry cook"],
        ["made a soup with carrots", "baked fresh bread", "served fish with lemon", "added salt and pepper", "cooked rice and beans",
            "put cheese on the pizza", "roasted the potatoes", "mixed flour, eggs and butter"],
    ),
    "weather": (
        ["the morning", "the weekend", "the north", "the coast", "next week", "tonight", "the whole country", "the valley"],
        ["will bring heavy rain", "will be sunny and warm", "expects strong winds", "will see the first snow", "will be cloudy and cold",
            "will have a storm with thunder", "can expect thick fog", "will get frost and ice"],
    ),
    "music": (
        ["the orchestra", "the singer", "the band", "the pianist", "a young violinist", "the choir", "the drummer", "the guitar player"],
        ["played a slow melody", "sang three new songs", "gave a concert", "recorded an album", "practised the difficult rhythm",
            "wrote a song about love", "tuned the instruments", "performed the symphony"],
    ),
    "science": (
        ["a scientist", "the researchers", "the laboratory", "the professor of physics", "a team of biologists", "the telescope",
            "the astronomer", "the chemist"],
        ["discovered a new planet", "studied tiny cells", "measured the speed of light", "published an experiment",
            "found a new kind of atom", "explained gravity", "examined the old bones", "tested the theory"],
    ),
    "travel": (
        ["the tourists", "our family", "the traveller", "my parents", "the group", "the pilot", "the guide", "the young couple"],
        ["took a flight to Rome", "booked a hotel by the sea", "crossed the border by train", "packed the suitcases",
            "visited the old castle abroad", "lost the passport at the airport", "spent the holiday on an island",
            "bought a map of the city"],
    ),
    "animals": (
        ["the lion", "a wild wolf", "the elephant", "the mother bird", "the dolphin", "a grey cat", "the penguin", "the old dog"],
        ["fed its young", "slept in the den", "hunted in the grass", "licked its paws", "built a nest", "shook its tail",
            "lives in a herd", "has thick fur"],
    ),
    "money": (
        ["the bank", "the company", "the market", "the investor", "the shop owner", "the government", "the factory", "the accountant"],
        ["raised the prices", "paid its debts", "lowered the interest rate", "sold all its shares", "earned a large profit",
            "lost a million dollars", "cut the taxes", "gave a loan"],
    ),
    "health": (
        ["the doctor", "the nurse", "the patient", "the dentist", "the hospital", "the sick child", "the surgeon", "the pharmacy"],
        ["treated a high fever", "needed medicine for the cough", "healed the broken arm", "checked the blood", "cured the illness",
            "washed the wound", "warned about the flu", "ordered pills against the pain"],
    ),
    "school": (
        ["the teacher", "the pupils", "the class", "a student", "the headmaster", "the first grade", "the boys and girls", "the new pupil"],
        ["did the homework", "learned to read and write", "wrote an exam", "corrected the spelling test", "got good marks",
            "solved the exercise on the blackboard", "prepared the lesson", "studied history for the exam"],
    ),
}
TOPIC_FRAMES = [
    "{who} {what}.", "Yesterday we heard that {who} {what}.", "[Last week|This year|Yesterday|Today], {who} {what}.",
    "{who} {what}[, said the newspaper| again|, as we expected].",
    "[I read|It is true|They say|Everyone knows] that {who} {what}.",
    "{who} {what}, and [nobody was surprised|it was in the newspaper|everyone talked about it].",
]
ASK_SENTIMENT = [
    "What is the sentiment: {x}", "What is the sentiment of this text? {x}", "Is this positive, negative or neutral? {x}",
    "Sentiment: {x}", "Classify the sentiment: {x}",
    "{x} What is the sentiment?", "What is the sentiment?\n{x}",
]
ASK_TOPIC = ["What is the topic: {x}", "What is the topic of this text? {x}", "Which topic is this about? {x}", "Topic: {x}",
    "Classify the topic: {x}", "{x} What is the topic?", "What is the topic?\n{x}"]


def verdict(rng: Random, held: bool, words: list[str], thing: str) -> str:
    return pick(rng, [w for w in words if held_out("mood", thing, w) == held])


def sentiment(rng: Random, held: bool) -> tuple[str, str]:
    """(text, label): the label is that of the last clause; what comes before "but" may say the opposite."""
    while True:
        label, thing = pick(rng, ["positive", "negative", "neutral"]), pick(rng, ABOUT)
        words = {"positive": GOOD, "negative": BAD, "neutral": FACTS}[label]
        if any(held_out("mood", thing, w) == held for w in words):
            break
    opinion = verdict(rng, held, words, thing)
    the = f"[the|this|our|my|the new|that] {thing}"
    if label == "neutral":
        text = f"{the} {opinion}." + (f" {pick(rng, MORE_FACTS)}." if rng.random() < 0.5 else "")
        return expand(rng, text, {}), label
    good = label == "positive"
    same, other = (PRAISE, BAD) if good else (BLAME, GOOD)
    forms = [
        f"{the} [was|is] {opinion}.",
        f"{the} was {opinion}[, and|:] {pick(rng, same)}.",
        f"[I think|I find|I must say|We all agreed] that {the} was {opinion}.",
        f"{pick(rng, same)}. {the} was {opinion}.",
        f"{the} {pick(rng, FACTS[:9])}. [It was|I found it] {opinion}.",
        f"{pick(rng, MORE_FACTS)}. {the} was {opinion}!",
        f"I [thought|expected|was told] that {the} would be {pick(rng, other)}, but it was {opinion}.",
        f"[They say|My brother says] that {the} is {pick(rng, other)}, but [for me|I think] it is {opinion}.",
    ]
    if len(opinion.split()) == 1:
        opposite = pick(rng, [w for w in other if len(w.split()) == 1])
        forms += [f"{the} was not {opposite} at all, it was {opinion}.", f"{the} was {opinion}, not {opposite}."]
    return expand(rng, pick(rng, forms), {}), label


def topic(rng: Random, held: bool) -> tuple[str, str]:
    while True:
        label = pick(rng, list(TOPICS))
        who, what = (pick(rng, x) for x in TOPICS[label])
        if held_out("topic", who, what) == held:
            return expand(rng, pick(rng, TOPIC_FRAMES), {"who": who, "what": what}), label
