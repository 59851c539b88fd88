"""Short stories: the twenty-four plots of plots.txt told with many sentences, characters, objects and places.

`story(rng, held)` -> Story: text, and what it is about (hero's kind, the thing), from which a chat request can be made. The combination
(plot, hero's kind, thing) decides the split.
"""

# ruff: noqa: SIM905 (word lists read better as one string)
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from .text import expand, held_out, pick

GIRLS = "Lily Anna Mia Rosa Emma Sara Lucy Zoe Clara Nina Ella Maya Ruby Ivy Daisy".split()
BOYS = "Tom Ben Max Leo Sam Jack Tim Oscar Hugo Noah Finn Paul Adam Felix Theo".split()
PEOPLE = ["girl", "boy"]
ANIMALS = [
    "fox", "rabbit", "bear", "mouse", "cat", "dog", "duck", "frog", "squirrel", "hedgehog", "lamb", "pony", "owl", "turtle", "dragon",
    "wolf", "elephant", "penguin", "monkey", "hen", "robot", "lion", "crab", "mole",
]
ADULTS = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "aunt": "she", "uncle": "he"}
THINGS = [
    "ball", "kite", "doll", "drum", "toy boat", "teddy bear", "picture book", "hat", "scarf", "bell", "whistle", "lantern", "blanket",
    "puzzle", "basket", "ring", "button", "key", "shell", "wagon", "umbrella", "flute", "paper crown", "music box", "balloon", "mirror",
]
COLOURS = ["red", "blue", "green", "yellow", "white", "golden", "silver", "purple", "orange", "brown", "pink"]
LOOKS = ["little", "small", "shiny", "old", "pretty", "round", "soft", "bright", "lovely", "tiny", "big"]
TRAITS = ["kind", "curious", "brave", "shy", "clever", "cheerful", "quiet", "gentle", "busy", "playful", "stubborn", "patient"]
HOMES = [
    "in a small village", "near a big forest", "in a little house by the sea", "on a farm", "at the edge of a quiet town",
    "in a green valley", "beside a river", "at the foot of a mountain", "in a cosy cottage", "in a busy city", "on a small island",
    "next to an old mill",
]
SPOTS = {
    "garden": "in the garden", "park": "in the park", "forest": "in the forest", "river": "by the river", "lake": "at the lake",
    "beach": "on the beach",
    "hill": "on the hill", "market": "at the market", "meadow": "in the meadow", "barn": "in the barn", "bridge": "on the bridge",
    "old tree": "under the old tree", "school": "at school", "pond": "by the pond", "attic": "in the attic", "field": "in the field",
}
FOODS = ["apples", "cakes", "bread", "soup", "honey", "berries", "cheese", "nuts", "cookies", "carrots", "pie", "pancakes", "jam", "plums"]
TIMES = ["one day", "one morning", "one sunny afternoon", "one windy day", "one spring morning", "one evening", "one cold day",
    "one quiet Sunday"]
HIDDEN = ["under the bed", "behind the door", "in the kitchen", "behind the sofa", "under a pile of leaves", "in an old box",
    "behind a bush", "on the shelf"]


def read_plots(path: Path) -> dict[str, list[list[str]]]:
    """name -> paragraphs -> sentence templates, in the order of the file (whose head explains the form)."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("#"))
    plots = {}
    for part in text.split("\n== ")[1:]:
        name, body = part.split("\n", 1)
        plots[name] = [paragraph.split("\n") for paragraph in body.strip().split("\n\n")]
    return plots


PLOTS = read_plots(Path(__file__).parent / "plots.txt")


@dataclass(frozen=True)
class Story:
    text: str
    plot: str
    hero: str  # "girl", "fox" ...
    name: str
    thing: str


def person(rng: Random, prefix: str, kind: str, name: str, female: bool) -> dict[str, str]:
    """Slots of one character: {n} name, {kind}, {he} {him} {his}; the friend's carry the prefix m."""
    he, him, his = ("she", "her", "her") if female else ("he", "him", "his")
    who = f"[a|a little|a young|a small|a {pick(rng, TRAITS)}|a {pick(rng, TRAITS)} little] {kind} [named|called] {name}"
    full = name if kind in PEOPLE else f"{name} the {kind}"
    return {f"{prefix}{k}": v for k, v in {"n": name, "kind": kind, "he": he, "him": him, "his": his, "who": who, "full": full}.items()}


def story(rng: Random, held: bool, hero: str | None = None, thing: str | None = None) -> Story:
    """One story of the wanted split; hero (kind) and thing may be given, the plot is then chosen to fit the split."""
    while True:
        kind = hero or pick(rng, PEOPLE if rng.random() < 0.45 else ANIMALS)
        what, plot = thing or pick(rng, THINGS), pick(rng, list(PLOTS))
        if held_out("story", plot, kind, what) == held:
            break
    female = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
    female2 = rng.random() < 0.5
    name = pick(rng, GIRLS if female else BOYS)
    friend = pick(rng, [n for n in (GIRLS if female2 else BOYS) if n != name])
    fkind = ("girl" if female2 else "boy") if kind in PEOPLE and rng.random() < 0.75 else pick(rng, [a for a in ANIMALS if a != kind])
    adult = pick(rng, list(ADULTS))
    spot, spot2 = rng.sample(list(SPOTS), 2)
    food, food2 = rng.sample(FOODS, 2)
    hidden, hidden2 = rng.sample(HIDDEN, 2)
    slots = person(rng, "", kind, name, female) | person(rng, "m", fkind, friend, female2)
    slots |= {"adult": adult, "ahe": ADULTS[adult], "ahis": "her" if ADULTS[adult] == "she" else "his", "home": pick(rng, HOMES)}
    slots |= {"thing": what, "spot": spot, "at": SPOTS[spot], "spot2": spot2, "at2": SPOTS[spot2], "food": food, "food2": food2}
    slots |= {"col": pick(rng, COLOURS), "look": pick(rng, LOOKS), "trait": pick(rng, TRAITS), "time": pick(rng, TIMES)}
    slots |= {"hid": hidden, "hid2": hidden2, "big": pick(rng, ["bear", "wolf", "giant", "dragon", "goose", "crow"])}
    slots["stuck"] = pick(rng, ["bird", "kitten", "bee", "beetle", "lamb", "butterfly", "duckling", "puppy"])
    opening = pick(rng, OPENINGS if rng.random() < 0.4 else OPENINGS[:3])
    paragraphs = [" ".join(s for s in ([opening] if i == 0 else []) + [keep(rng, s) for s in p] if s) for i, p in enumerate(PLOTS[plot])]
    for i in range(len(paragraphs) - 1):
        paragraphs[i] += " " + pick(rng, ASIDES) if rng.random() < 0.25 else ""
    paragraphs[-1] += " " + pick(rng, ENDINGS) if rng.random() < 0.6 else ""
    return Story("\n\n".join(expand(rng, p, slots) for p in paragraphs), plot, kind, name, what)


def keep(rng: Random, sentence: str) -> str:
    """A sentence that begins with ? is told every other time."""
    return sentence if not sentence.startswith("?") else sentence[1:] if rng.random() < 0.5 else ""


OPENINGS = [
    "Once upon a time, there was {who}. [{n} lived {home}|{he} lived {home}|{n} lived {home} with {his} {adult}].",
    "Once upon a time, {home}, there lived {who}.",
    "Once upon a time, there was {who} who lived {home}.",
    "Long ago, {home}, there lived {who}.",
    "There was once {who}. [{he}|{n}] lived {home}.",
    "{who} lived {home}.",
    "In a [far away|quiet|sunny] land, there was {who}.",
]
ASIDES = [  # fit anywhere but at the end
    "[A small bird was singing somewhere.|The wind was soft.|A cloud passed over the sun.|Somewhere a bell was ringing.|The air smelled "
    "of {food2}.]",
    "{n} took a deep breath.",
    "{n} [thought about it for a while|did not know what to say|looked around|scratched {his} head].",
    "[It was very quiet.|Nobody said a word.|Time went by.|The hours passed slowly.]",
    "{n} remembered what {his} {adult} had told {him}: \"[Look twice|Be kind|Stay calm|One thing at a time].\"",
    "[What could {n} do?|What would happen next?|Was it too late?]",
]
ENDINGS = [
    "[The end.|And that was the end of the story.]",
    "From that day on, {n} [was always kind|was happy|never forgot that day|smiled more often].",
    "[They all lived happily ever after.|And they were happy.|It was a [good|wonderful|happy] day.]",
    "[{n} had learned something important that day.|It was a day to remember.|And if you go {at}, you can still see {n} there.|{n} could "
    "not wait for the next adventure.]",
    "That night, {n} [slept very well|had sweet dreams|fell asleep with a smile].",
    "{n} [told|wrote to] {his} {adult} about it, and {ahe} [laughed|smiled|was very proud].",
]
