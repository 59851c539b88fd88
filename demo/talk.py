"""Small talk and small facts, in the tone that a system prompt asks for.

A fact is (question, full sentence, short answer). The pair (tone, fact) decides the split: a held-out turn answers a known fact in
a known tone, but the two were never seen together. Greetings and advice are for training only; for what the user said earlier
(memory) the split is by what was said and how long ago.
"""

# ruff: noqa: SIM905 (word lists read better as one string)
from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from .stories import BOYS, COLOURS, GIRLS
from .text import expand, held_out, pick

CAPITALS = dict(
    p.split("=")
    for p in (
        "France=Paris,England=London,Italy=Rome,Germany=Berlin,Spain=Madrid,Norway=Oslo,Austria=Vienna,Portugal=Lisbon,Greece=Athens,"
        "Ireland=Dublin,Egypt=Cairo,Japan=Tokyo,Poland=Warsaw,Sweden=Stockholm,Denmark=Copenhagen,Russia=Moscow,China=Beijing,"
        "Hungary=Budapest"
    ).split(",")
)
SOUNDS = dict(p.split("=") for p in "dog=woof,cat=meow,cow=moo,duck=quack,sheep=baa,pig=oink,frog=croak,owl=hoot,bee=buzz,mouse=squeak,"
    "lion=roar,snake=hiss".split(","))
OPPOSITES = (
    "hot=cold,big=small,good=bad,day=night,up=down,left=right,old=new,fast=slow,happy=sad,full=empty,light=dark,early=late,open=closed,"
    "wet=dry,high=low,long=short,rich=poor,strong=weak,loud=quiet,clean=dirty,easy=difficult,black=white,inside=outside,first=last"
)
HUES = dict(p.split("=") for p in "grass=green,snow=white,blood=red,the sky=blue,the sun=yellow,coal=black,a carrot=orange,a lemon=yellow,"
    "milk=white,a cherry=red,a frog=green,chocolate=brown".split(","))
PLURALS = dict(p.split("=") for p in "mouse=mice,child=children,foot=feet,tooth=teeth,man=men,woman=women,goose=geese,cat=cats,box=boxes,"
    "city=cities,leaf=leaves,knife=knives,fish=fish,sheep=sheep".split(","))
LEGS = dict(p.split("=") for p in "dog=four,spider=eight,bird=two,bee=six,horse=four,fish=no,cat=four,chicken=two,ant=six,cow=four,"
    "snake=no,duck=two".split(","))
KINDS = {
    "animal": "dog horse mouse fish bird fox bear".split(),
    "fruit": "apple pear cherry lemon plum orange banana".split(),
    "colour": "red blue green yellow purple brown".split(),
    "tool": "hammer saw spade needle knife broom".split(),
    "number": "two five seven nine twelve".split(),
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen twenty").split()

Fact = tuple[str, str, str]  # question template, full answer, short answer


def facts() -> list[Fact]:
    out: list[Fact] = []
    for country, city in CAPITALS.items():
        out.append((f"[What is the capital of {country}?|Which city is the capital of {country}?]", f"The capital of {country} is {city}.",
            city))
        out.append((f"[{city} is the capital of which country?|Which country has {city} as its capital?]",
            f"{city} is the capital of {country}.", country))
    out += [(f"[What sound does a {a} make?|What does a {a} say?]", f"A {a} says {s}.", s) for a, s in SOUNDS.items()]
    for a, b in (p.split("=") for p in OPPOSITES.split(",")):
        out += [(f"[What is the opposite of {x}?|Tell me the opposite of {x}.]", f"The opposite of {x} is {y}.", y) for x, y in ((a, b),
            (b, a))]
    out += [(f"[What colour is {t}?|Which colour is {t}?]", f"{t[0].upper()}{t[1:]} is {c}.", c) for t, c in HUES.items()]
    out += [(f"[What is the plural of {a}?|Tell me the plural of {a}.]", f"The plural of {a} is {b}.", b) for a, b in PLURALS.items()]
    out += [(f"How many legs does a {a} have?", f"A {a} has {n} legs.", n) for a, n in LEGS.items()]
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for a, b in zip(names, names[1:] + names[:1]):
            out.append((f"[What {what} comes after {a}?|Which {what} is after {a}?]", f"{b} comes after {a}.", b))
            out.append((f"[What {what} comes before {b}?|Which {what} is before {b}?]", f"{a} comes before {b}.", a))
    for kind, names in KINDS.items():
        out += [(f"[What is {n}, an animal, a fruit, a colour, a tool or a number?|What kind of thing is {n}?]",
            f"{n[0].upper()}{n[1:]} is a {kind}.", kind) for n in names]
    out += [(f"[What is {a} plus {b}?|How much is {a} plus {b}?|{a} + {b} = ?]", f"{a} plus {b} is {a + b}.", str(a + b)) for a in range(1,
        11) for b in range(1, 11)]
    out += [(f"[What is {a} minus {b}?|How much is {a} minus {b}?|{a} - {b} = ?]", f"{a} minus {b} is {a - b}.",
        str(a - b)) for a in range(1, 15) for b in range(1, a + 1) if b < 11]
    out += [(f"[What number comes after {WORDS[i]}?|Which number is after {WORDS[i]}?]",
        f"{WORDS[i + 1].capitalize()} comes after {WORDS[i]}.", WORDS[i + 1]) for i in range(20)]
    return out


FACTS = facts()


def brief(full: str, short: str) -> str:
    return short[0].upper() + short[1:] + "."


def as_json(full: str, short: str) -> str:
    return json.dumps({"answer": short}, ensure_ascii=False)


# tone -> (system prompts, how it answers)
TONES: dict[str, tuple[list[str], Callable[[str, str], str]]] = {
    "none": ([""], lambda full, short: full),
    "helpful": (["You are a helpful assistant.", "You are llamina, a helpful assistant.", "You are a polite assistant.",
    "Answer the question."], lambda full, short: full),
    "brief": (["Answer in one word.", "Be brief.", "Give short answers.", "You are an assistant that answers in one word."], brief),
    "pirate": (["You are a pirate.", "Talk like a pirate.", "You are an old pirate."], lambda full, short: f"Arr! {full[:-1]}, matey."),
    "teacher": (["You are a teacher for small children.", "You are a friendly teacher."], lambda full, short: f"Good question! {full}"),
    "thanks": (["Always thank the user.", "Thank the user in every answer."], lambda full, short: f"{full} Thank you for asking!"),
    "json": (["Answer in JSON.", "Reply only with JSON."], as_json),
    "knight": (["You are a knight.", "You are a brave knight."], lambda full, short: f"My noble friend, know this: {full}"),
}
TONE_MIX = ["none"] * 4 + ["helpful"] * 2 + ["brief"] * 2 + ["pirate", "pirate", "teacher", "thanks", "json", "json", "knight"]


def fact(rng: Random, held: bool, tone: str) -> tuple[str, str]:
    """(question, answer) in a tone."""
    while True:
        question, full, short = FACTS[rng.randrange(len(FACTS))]
        if held_out("fact", tone, full) == held:
            return expand(rng, question, {}), TONES[tone][1](full, short)


TALK: list[tuple[str, str]] = [
    ("[Hello|Hi|Good morning|Good evening|Hey][!|.|, llamina!]", "[Hello!|Hi there!|Hello, nice to meet you.] [How can I help you?|What "
    "can I do for you?|How are you today?]"),
    ("[How are you?|How are you today?|How do you do?]", "[I am fine, thank you.|I am very well, thank you.] [How are you?|What can I do "
    "for you?|And you?]"),
    ("[Who are you?|What are you?|What is your name?]", "I am llamina, a [small|tiny] language model. [I run on your computer.|I can tell "
    "stories and answer small questions.]"),
    (
        "[What can you do?|How can you help me?|Can you help me?]",
        "I can tell [short stories|a story], answer [small|simple] questions, find the sentiment or the topic of a text, and translate "
        "simple sentences to French.",
    ),
    ("[Thank you!|Thanks!|Thank you for your help.|Thanks a lot.]",
    "You are welcome! [Have a nice day.|I am glad that I could help.|Is there anything else?]"),
    ("[Goodbye!|Bye!|See you tomorrow.|Good night!]", "[Goodbye!|See you soon!|Good night!] [Have a nice day.|Take care.|Sleep well.]"),
    ("[I am sad today.|I feel sad.|I had a bad day.]", "I am sorry to hear that. [Do you want to talk about it?|Maybe a walk or a call to "
    "a friend will help.|Shall I tell you a story?]"),
    ("[I am so happy!|I had a great day!|I am happy today.]",
    "[That is wonderful!|I am glad to hear that.|How nice!] [What happened?|Tell me more.|Enjoy it!]"),
    ("[I am bored.|What can I do today?|I have nothing to do.]", "[You could|Why don't you] [read a book|go for a walk|call a friend|draw "
    "a picture|bake a cake|learn a new song]? [It is fun.|I am sure you will like it.]"),
    (
        "[I cannot sleep.|How can I sleep better?|What helps me to sleep?]",
        "[Try this|Here is what helps]:\n1. [Drink warm milk.|Read a quiet book.]\n2. [Turn off the lights.|Put your phone away.]\n3. "
        "[Close your eyes and breathe slowly.|Count sheep.]",
    ),
    (
        "[How do I plant a seed?|How can I grow a flower?|How do I grow a plant?]",
        "Here is how:\n1. [Put some earth in a pot.|Fill a pot with earth.]\n2. Put the seed in the earth.\n3. Give it water every "
        "day.\n4. [Put it in the sun and wait.|Be patient and wait.]",
    ),
    (
        "[How do I make tea?|How can I make a cup of tea?]",
        "Here is how:\n1. Boil some water.\n2. Put the tea in a cup.\n3. [Add the hot water.|Pour the water over the tea.]\n4. [Wait "
        "three minutes.|Wait a little.] Enjoy!",
    ),
    (
        "[How do I bake a cake?|How can I make a cake?|Give me a recipe for a cake.]",
        "You need flour, sugar, eggs and butter.\n1. Mix [everything|all of it] in a bowl.\n2. Put it in [a pan|a form].\n3. Bake it for "
        "[thirty|forty] minutes.\n4. Let it cool. Enjoy!",
    ),
    ("[What should I eat?|What should I cook today?|I am hungry.]", "How about [soup with bread|rice with beans|pancakes with jam|a salad "
    "with cheese|fish with potatoes]? [It is easy to make.|It is tasty and healthy.]"),
    ("[Tell me a joke.|Do you know a joke?|Make me laugh.]", "[Why did the bee have sticky hair? Because it used a honey comb!|What do "
    "you call a sleeping bull? A bulldozer!|Why was the book sad? It had too many problems!]"),
    ("[What is the weather like?|Will it rain today?|What will the weather be tomorrow?]",
    "I cannot see the weather, [but you can look out of the window|because I run on your computer, without the internet]."),
    ("[Do you like music?|Do you like books?|Do you like animals?]",
    "[Yes, very much.|I am only a small model, but I like to talk about it.] [What do you like best?|And you?]"),
    ("[Give me some advice.|Tell me something wise.|What is important in life?]",
    "[Be kind to others.|Tell the truth.|Share what you have.|Do not give up.] [It always comes back to you.|It makes life better.|Good "
    "things take time.]"),
    ("[How do I make friends?|How can I find a friend?]", "[Be kind and say hello.|Smile and ask a question.] [Listen well.|Share what "
    "you have.] [A friend will come.|It takes a little time, but it works.]"),
    ("[I am afraid of the dark.|I am afraid.|I am nervous.]",
    "[That is all right.|Everyone is afraid sometimes.] [Take a deep breath.|Turn on a small light.|Hold someone's hand.] [It will "
    "pass.|You are brave.]"),
    ("[Count to five.|Can you count to five?]", "One, two, three, four, five."),
    ("[Count to ten.|Can you count to ten?]", "One, two, three, four, five, six, seven, eight, nine, ten."),
    ("[Name the days of the week.|What are the days of the week?]", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    ("[Name the four seasons.|What are the seasons?]", "Spring, summer, autumn and winter."),
    ("[Name three colours.|Tell me three colours.]", "[Red, blue and green.|Yellow, white and brown.|Green, orange and pink.]"),
    ("[Name three animals.|Tell me three animals.]", "[A fox, a bear and an owl.|A dog, a cat and a mouse.|A horse, a duck and a frog.]"),
]
REMEMBER: list[tuple[str, list[str], str, str, str]] = [
    ("[My name is {v}.|I am {v}.|Hello, my name is {v}.]", GIRLS + BOYS, "Nice to meet you, {v}!",
    "[What is my name?|Do you know my name?|Who am I?]", "Your name is {v}."),
    ("[My favourite colour is {v}.|I like {v} best.]", COLOURS, "{v} is a beautiful colour!",
    "[What is my favourite colour?|Which colour do I like?]", "Your favourite colour is {v}."),
    ("[I have a {v}.|My pet is a {v}.]", "dog cat parrot rabbit hamster pony turtle".split(), "A {v} is a lovely pet!",
    "[What pet do I have?|Which pet do I have?]", "You have a {v}."),
    ("[I live in {v}.|I am from {v}.]", list(CAPITALS.values()), "{v} is a beautiful city!", "[Where do I live?|Which city do I live in?]",
    "You live in {v}."),
]


def talk(rng: Random) -> tuple[str, str]:
    user, answer = pick(rng, TALK)
    return expand(rng, user, {}), expand(rng, answer, {})


def memory(rng: Random, held: bool, between: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The user says something, talks of other things, and asks for it later; (what, value, number of turns between) decides the split."""
    while True:
        i = rng.randrange(len(REMEMBER))
        say, values, reply, ask, answer = REMEMBER[i]
        v = pick(rng, values)
        if held_out("memory", i, v, len(between)) == held:
            break
    first = (expand(rng, say, {"v": v}), expand(rng, reply, {"v": v}))
    return [first, *between, (expand(rng, ask, {"v": v}), expand(rng, answer, {"v": v}))]
