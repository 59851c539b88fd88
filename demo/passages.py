"""Short passages with a question whose answer stands in the passage, or does not.

A passage tells one to three facts about each of one to three people, in mixed order and words. The combination (who,
relation, value) decides the split: a held-out question asks for a pairing that no training passage asks for.
"""

# ruff: noqa: SIM905 (word lists read better as one string)
from __future__ import annotations

from random import Random

from .stories import BOYS, COLOURS, FOODS, GIRLS, SPOTS, THINGS
from .text import expand, held_out, pick

CITIES = "Paris London Rome Berlin Madrid Oslo Vienna Lisbon Athens Dublin Prague Cairo Boston Tokyo Geneva Zurich".split()
JOBS = "baker teacher doctor farmer painter sailor singer gardener driver writer cook nurse pilot dentist tailor judge".split()
PETS = "cat dog parrot rabbit goldfish hamster turtle pony mouse canary".split()
SPORTS = "tennis football chess basketball golf hockey volleyball badminton".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SUBJECTS = "horses,stars,trains,the sea,bees,castles,flowers,dinosaurs,the moon,ships,mountains,robots".split(",")
NUMBERS = "two three four five six seven eight nine ten twelve fifteen twenty".split()

# relation -> (values, ways to say it, ways to ask for the value, a way to ask for the person or "")
RELATIONS: dict[str, tuple[list[str], list[str], list[str], str]] = {
    "city": (CITIES, ["{n} lives in {v}.", "{n} [moved to|has a house in|comes from] {v}."], ["Where does {n} live?",
    "In which city does {n} live?"], "Who lives in {v}?"),
    "job": (JOBS, ["{n} works as a {v}.", "{n} is a {v}.", "{n} became a {v} [last year|many years ago]."], ["What is {n}'s job?",
    "What does {n} do for a living?"], "Who is a {v}?"),
    "pet": (PETS, ["{n} has a {v}.", "{n}'s pet is a {v}.", "At home, {n} keeps a {v}."], ["What pet does {n} have?",
    "Which animal does {n} have?"], "Who has a {v}?"),
    "sport": (SPORTS, ["{n} plays {v} [every Sunday|after work|with friends].", "{n} likes to play {v}."], ["What does {n} play?",
    "Which game does {n} like?"], "Who plays {v}?"),
    "food": (FOODS, ["{n} loves {v}.", "{n} [would like to eat|always eats] {v}.", "{n}'s favourite food is {v}."],
    ["What does {n} like to eat?", "What is {n}'s favourite food?"], "Who likes to eat {v}?"),
    "colour": (COLOURS, ["{n} wears a {v} [coat|hat|scarf].", "{n}'s [hat|coat] is {v}."], ["Which colour does {n} wear?",
    "What colour does {n} wear?"], "Who wears something {v}?"),
    "lost": (THINGS, ["{n} lost a {v} [on the way|yesterday].", "{n} cannot find the {v}.", "{n} is looking for the {v}."],
    ["What did {n} lose?", "What is {n} looking for?"], "Who lost the {v}?"),
    "gift": (THINGS, ["{n} gave a {v} to [a friend|a neighbour].", "{n} gave away the {v}."], ["What did {n} give away?",
    "What was {n}'s gift?"], "Who gave away the {v}?"),
    "month": (MONTHS, ["{n} was born in {v}.", "{n}'s birthday is in {v}."], ["When is {n}'s birthday?", "In which month was {n} born?"],
    "Who was born in {v}?"),
    "day": (DAYS, ["{n} [arrived|came home] on {v}.", "On {v}, {n} came [back|home]."], ["When did {n} come home?",
    "On which day did {n} arrive?"], "Who came home on {v}?"),
    "reading": (SUBJECTS, ["{n} is reading a book about {v}.", "{n} likes books about {v}."], ["What is {n} reading about?",
    "What is {n}'s book about?"], "Who reads about {v}?"),
    "count": (NUMBERS, ["{n} bought {v} [eggs|stamps|books|tickets].", "{n} has {v} [coins|stamps|pencils|shells]."],
    ["How many does {n} have?", "How many things does {n} have?"], ""),
    "spot": (list(SPOTS), ["{n} is [waiting|sitting|walking] near the {v}.", "You can find {n} near the {v}."], ["Where is {n}?",
    "Where can you find {n}?"], "Who is near the {v}?"),
}
FORMS = {"city": "{v}", "job": "a {v}", "pet": "a {v}", "lost": "the {v}", "spot": "near the {v}"}
ASK = ["{p} Question: {q}", "{p}\nQuestion: {q}", "Read the text. {p} Question: {q}", "{p} {q}", "{q} Text: {p}"]
UNKNOWN = "The text does not say."


def passage(rng: Random, held: bool) -> tuple[str, str, str]:
    """(passage, question, answer). One question in eight has no answer in the passage."""
    people = rng.sample(GIRLS + BOYS, pick(rng, [1, 1, 2, 2, 2, 3]))
    most = 2 if len(people) == 1 else 3
    facts = [(n, r, pick(rng, RELATIONS[r][0])) for n in people for r in rng.sample(list(RELATIONS), rng.randint(1, most))]
    unknown = rng.random() < 0.125
    if unknown:
        name = pick(rng, people)
        relation = pick(rng, [r for r in RELATIONS if (name, r) not in {(n, r) for n, r, _ in facts}])
        value = "?"
        if held_out("qa", name, relation, value) != held:
            return passage(rng, held)
    else:
        fits = [f for f in facts if held_out("qa", *f) == held]
        if not fits:
            return passage(rng, held)
        name, relation, value = pick(rng, fits)
    order = list(facts)
    if rng.random() < 0.6:
        rng.shuffle(order)
    sentences, last = [], ""
    for n, r, v in order:
        text = pick(rng, RELATIONS[r][1])
        if n == last and text.startswith("{n} ") and rng.random() < 0.6:
            text = ("She" if n in GIRLS else "He") + text[3:]
        sentences.append(expand(rng, text, {"n": n, "v": v}))
        last = n
    whose = RELATIONS[relation][3] if sum((r, v) == (relation, value) for _, r, v in facts) == 1 else ""
    if whose and rng.random() < 0.3:
        return " ".join(sentences), expand(rng, whose, {"v": value}), f"{name}."
    question = expand(rng, pick(rng, RELATIONS[relation][2]), {"n": name})
    answer = UNKNOWN if unknown else expand(rng, FORMS.get(relation, "{v}"), {"v": value})
    return " ".join(sentences), question, answer if unknown else answer[0].upper() + answer[1:] + "."
