"""English -> French: a small grammar that makes both sides of a sentence at once.

Articles, gender and number agreement, adjective position, elision (l'arbre, de l'eau is left out), negation, possessives, pronouns, places,
times, questions with fixed answers. The set of content words of a sentence decides its split: a held-out sentence combines
a subject, a verb and an object (or a noun, an adjective and a place) that were never seen together.
"""

# ruff: noqa: SIM905 (word lists read better as one string)
from __future__ import annotations

from random import Random
from typing import NamedTuple

from .text import held_out, pick


class Noun(NamedTuple):
    en: str
    ens: str
    fr: str
    frs: str
    fem: bool

    @property
    def vowel(self) -> bool:
        return self.fr[0] in "aeiouéêhœ"


def nouns(table: str) -> list[Noun]:
    """'cat chat m' lines; '+' plurals are regular (an s on both sides) unless given as 'child/children enfant/enfants m'."""
    out = []
    for entry in table.split(","):
        en, fr, gender = entry.split()
        (e, es), (f, fs) = ((w.split("/") if "/" in w else (w, w + "s")) for w in (en.replace("_", " "), fr.replace("_", " ")))
        out.append(Noun(e, es, f, fs, gender == "f"))
    return out


BEINGS = nouns(
    "cat chat m,dog chien m,horse cheval/chevaux m,bird oiseau/oiseaux m,girl fille f,boy garçon m,woman/women femme f,man/men homme m,"
    "child/children enfant m,teacher professeur m,friend ami m,mouse/mice souris/souris f,cow vache f,king roi m,queen reine f,"
    "doctor médecin m,farmer fermier m,baker boulanger m,fox/foxes renard m,rabbit lapin m,bear ours/ours m,neighbour voisin m,"
    "sister sœur f,brother frère m,mother mère f,father père m"
)
OBJECTS = nouns(
    "book livre m,apple pomme f,table table f,chair chaise f,house maison f,door porte f,key clé f,letter lettre f,hat chapeau/chapeaux m,"
    "car voiture f,flower fleur f,tree arbre m,ball balle f,boat bateau/bateaux m,bag sac m,cup tasse f,cake gâteau/gâteaux m,"
    "bottle bouteille f,lamp lampe f,shoe chaussure f,dress/dresses robe f,picture image f,clock horloge f,coat manteau/manteaux m,"
    "egg œuf m,orange orange f,knife/knives couteau/couteaux m,plate assiette f,bicycle vélo m,newspaper journal/journaux m,ring bague f,"
    "box/boxes boîte f,spoon cuillère f,umbrella parapluie m"
)
PLACES = nouns(
    "garden jardin m,kitchen cuisine f,school école f,forest forêt f,street rue f,room chambre f,park parc m,church/churches église f,"
    "shop magasin m,river rivière f,village village m,bridge pont m,station gare f,hotel hôtel m,museum musée m,"
    "hospital hôpital/hôpitaux m,library/libraries bibliothèque f,castle château/châteaux m"
)
# english, masculine, feminine, masculine plural, feminine plural, before the noun?, masculine before a vowel
ADJECTIVES = [
    a.split()
    for a in (
        "red rouge rouge rouges rouges 0,blue bleu bleue bleus bleues 0,green vert verte verts vertes 0,black noir noire noirs noires 0,"
        "white blanc blanche blancs blanches 0,yellow jaune jaune jaunes jaunes 0,big grand grande grands grandes 1,"
        "small petit petite petits petites 1,old vieux vieille vieux vieilles 1 vieil,new nouveau nouvelle nouveaux nouvelles 1 nouvel,"
        "beautiful beau belle beaux belles 1 bel,young jeune jeune jeunes jeunes 1,happy heureux heureuse heureux heureuses 0,"
        "sad triste triste tristes tristes 0,tired fatigué fatiguée fatigués fatiguées 0,clean propre propre propres propres 0,"
        "dirty sale sale sales sales 0,expensive cher chère chers chères 0,heavy lourd lourde lourds lourdes 0,"
        "round rond ronde ronds rondes 0,empty vide vide vides vides 0,strong fort forte forts fortes 0,"
        "hungry affamé affamée affamés affamées 0,good bon bonne bons bonnes 1,bad mauvais mauvaise mauvais mauvaises 1"
    ).split(",")
]
LOOSE = {"red", "blue", "green", "black", "white", "yellow", "big", "small", "old", "new", "beautiful", "clean", "dirty", "expensive",
    "heavy", "round", "empty"}
LIVING = {"red": 0, "blue": 0, "green": 0, "yellow": 0, "round": 0, "empty": 0, "expensive": 0, "new": 0}  # not said of beings
# english he / they, french il / ils / je / nous
VERBS = [
    v.split("/")
    for v in (
        "sees/see/voit/voient/vois/voyons,eats/eat/mange/mangent/mange/mangeons,takes/take/prend/prennent/prends/prenons,"
        "buys/buy/achète/achètent/achète/achetons,likes/like/aime/aiment/aime/aimons,"
        "looks for/look for/cherche/cherchent/cherche/cherchons,finds/find/trouve/trouvent/trouve/trouvons,has/have/a/ont/ai/avons,"
        "wants/want/veut/veulent/veux/voulons,sells/sell/vend/vendent/vends/vendons,opens/open/ouvre/ouvrent/ouvre/ouvrons,"
        "carries/carry/porte/portent/porte/portons,loses/lose/perd/perdent/perds/perdons,draws/draw/dessine/dessinent/dessine/dessinons,"
        "gives/give/donne/donnent/donne/donnons,hides/hide/cache/cachent/cache/cachons,washes/wash/lave/lavent/lave/lavons,"
        "watches/watch/regarde/regardent/regarde/regardons"
    ).split(",")
]
MOVES = [
    v.split("/")
    for v in (
        "sleeps/sleep/dort/dorment/dors/dormons,works/work/travaille/travaillent/travaille/travaillons,plays/play/joue/jouent/joue/jouons,"
        "sings/sing/chante/chantent/chante/chantons,waits/wait/attend/attendent/attends/attendons,runs/run/court/courent/cours/courons,"
        "dances/dance/danse/dansent/danse/dansons,walks/walk/marche/marchent/marche/marchons,lives/live/habite/habitent/habite/habitons,"
        "eats/eat/mange/mangent/mange/mangeons,reads/read/lit/lisent/lis/lisons,laughs/laugh/rit/rient/ris/rions"
    ).split(",")
]
IN = ["in/dans", "in front of/devant", "behind/derrière"]
ON = ["on/sur", "under/sous", "in front of/devant", "behind/derrière", "near/près de"]
TIMES = ["today/aujourd'hui", "now/maintenant", "every day/tous les jours", "in the morning/le matin", "in the evening/le soir",
    "often/souvent", "tonight/ce soir"]
NUMBERS = "two/deux three/trois four/quatre five/cinq six/six seven/sept eight/huit nine/neuf ten/dix".split()
OWNERS = ["my/mon/ma/mes", "your/ton/ta/tes", "his/son/sa/ses", "our/notre/notre/nos", "their/leur/leur/leurs"]
PHRASES = [
    p.split(" / ")
    for p in (
        "Good morning. / Bonjour.;Good evening. / Bonsoir.;Good night. / Bonne nuit.;Thank you. / Merci.;"
        "Thank you very much. / Merci beaucoup.;Goodbye. / Au revoir.;Please. / S'il vous plaît.;How are you? / Comment allez-vous ?;"
        "I am fine. / Je vais bien.;What is your name? / Comment vous appelez-vous ?;I do not understand. / Je ne comprends pas.;"
        "See you tomorrow. / À demain.;What time is it? / Quelle heure est-il ?;I love you. / Je t'aime.;It is raining. / Il pleut.;"
        "It is cold. / Il fait froid.;It is hot. / Il fait chaud.;Happy birthday! / Joyeux anniversaire !;Where are you? / Où êtes-vous ?;"
        "I am sorry. / Je suis désolé.;You are welcome. / De rien.;Hello! / Bonjour !;Yes. / Oui.;No. / Non.;"
        "Enjoy your meal! / Bon appétit !;I am hungry. / J'ai faim."
    ).split(";")
]


def the(n: Noun, plural: bool = False) -> tuple[str, str]:
    if plural:
        return f"the {n.ens}", f"les {n.frs}"
    return f"the {n.en}", f"l'{n.fr}" if n.vowel else f"{'la' if n.fem else 'le'} {n.fr}"


def phrase(rng: Random, n: Noun, words: list[str], living: bool, plural: bool = False) -> tuple[str, str]:
    """A noun phrase: article, possessive or number, and sometimes an adjective. Content words are appended to `words`."""
    words.append(n.en)
    kind = pick(rng, ["the", "the", "the", "a", "own", "number"] if plural else ["the", "the", "the", "a", "a", "own"])
    adjective = pick(rng, ADJECTIVES) if rng.random() < 0.35 else None
    if adjective and (adjective[0] in LIVING if living else adjective[0] not in LOOSE):
        adjective = None
    en, fr, vowel = n.ens if plural else n.en, n.frs if plural else n.fr, n.vowel
    if adjective:
        words.append(adjective[0])
        en = f"{adjective[0]} {en}"
        if adjective[5] == "1":
            form = adjective[1 + n.fem + 2 * plural]
            if vowel and not plural and not n.fem and len(adjective) > 6:
                form = adjective[6]
            fr, vowel = f"{form} {fr}", False
        else:
            fr = f"{fr} {adjective[1 + n.fem + 2 * plural]}"
    if kind == "number":
        e, f = pick(rng, NUMBERS).split("/")
        return f"{e} {en}", f"{f} {fr}"
    if kind == "own":
        e, m, f, p = pick(rng, OWNERS).split("/")
        return f"{e} {en}", f"{p if plural else m if vowel or not n.fem else f} {fr}"
    if kind == "a" and not plural:
        return f"{'an' if en[0] in 'aeiou' else 'a'} {en}", f"{'une' if n.fem else 'un'} {fr}"
    if kind == "a":
        return f"some {en}", f"{'de' if adjective and adjective[5] == '1' else 'des'} {fr}"
    if plural:
        return f"the {en}", f"les {fr}"
    return f"the {en}", f"l'{fr}" if vowel else f"{'la' if n.fem else 'le'} {fr}"


def near(preposition: str, fr: str) -> str:
    """'près de' contracts with le and les."""
    return f"{preposition} {fr}".replace("de le ", "du ").replace("de les ", "des ")


def negate(verb: str) -> str:
    return f"n'{verb} pas" if verb[0] in "aeiouéh" else f"ne {verb} pas"


def sentence(rng: Random, held: bool) -> tuple[str, str]:
    """(English, French) of the wanted split."""
    while True:
        en, fr, words = PATTERNS[pick(rng, PATTERN_MIX)](rng)
        if held_out("fr", *sorted(words)) == held and (len(set(words)) > 1 or not held):
            return en[0].upper() + en[1:], fr[0].upper() + fr[1:]


def subject(rng: Random, words: list[str]) -> tuple[str, str, int]:
    """A subject and the form of the verb: 0 he, 1 they, 2 I, 3 we."""
    r = rng.random()
    if r < 0.3:
        en, fr, form = pick(rng, ["he/il/0", "she/elle/0", "they/ils/1", "I/je/2", "we/nous/3"]).split("/")
        return en, fr, int(form)
    plural = r < 0.5
    return *phrase(rng, pick(rng, BEINGS), words, True, plural), int(plural)


def conjugate(fr: str, verb: str) -> str:
    return f"j'{verb}" if fr == "je" and verb[0] in "aeiouéh" else f"{fr} {verb}"


def does(rng: Random) -> tuple[str, str, list[str]]:
    """The cat eats an apple (, today); The cat does not see the red book."""
    words: list[str] = []
    s, fs, form = subject(rng, words)
    v = pick(rng, VERBS)
    words.append(v[0])
    thing = rng.random() < 0.8 or v[0] in ("eats", "sells", "opens", "buys", "carries", "draws", "gives")
    o, fo = phrase(rng, pick(rng, OBJECTS if thing else BEINGS), words, not thing, rng.random() < 0.25)
    en, fr = (v[0] if form == 0 else v[1]), v[2 + form]
    if rng.random() < 0.2:
        if fo.startswith(("un ", "une ", "des ")):
            o, fo = the(pick(rng, OBJECTS))
            words[-1] = o
        no = negate(fr)
        return f"{s} {'does' if form == 0 else 'do'} not {v[1]} {o}.", f"{fs} {no} {fo}.", words
    if rng.random() < 0.15:
        t, ft = pick(rng, TIMES[:5]).split("/")
        return f"{s} {en} {o} {t}.", f"{conjugate(fs, fr)} {fo} {ft}.", words
    return f"{s} {en} {o}.", f"{conjugate(fs, fr)} {fo}.", words


def moves(rng: Random) -> tuple[str, str, list[str]]:
    """The girl sings in the garden; We wait behind the school in the evening."""
    words: list[str] = []
    s, fs, form = subject(rng, words)
    v, place = pick(rng, MOVES), pick(rng, PLACES)
    words += [v[0], place.en]
    (p, fp), (o, fo) = pick(rng, IN[1:] if place.en == "bridge" else IN[:1] * 2 + IN).split("/"), the(place)
    t, ft = pick(rng, TIMES[:5]).split("/") if rng.random() < 0.25 else ("", "")
    en, fr = f"{s} {v[0] if form == 0 else v[1]} {p} {o} {t}", f"{conjugate(fs, v[2 + form])} {fp} {fo} {ft}"
    return en.strip() + ".", fr.strip() + ".", words


def where(rng: Random) -> tuple[str, str, list[str]]:
    """The book is on the table; Where is the key?; There is a cat under the chair."""
    words: list[str] = []
    living, plural = rng.random() < 0.4, rng.random() < 0.25
    n = pick(rng, BEINGS if living else OBJECTS)
    if rng.random() < 0.15:
        s, fs = phrase(rng, n, words, living, plural)
        if not s.startswith(("a ", "an ", "some ", "t")) or s.startswith("the "):
            return f"where {'are' if plural else 'is'} {s}?", f"où {'sont' if plural else 'est'} {fs} ?", words
        words.clear()
    s, fs = phrase(rng, n, words, living, plural)
    if rng.random() < 0.5:
        place = pick(rng, PLACES)
        (p, fp), (o, fo) = pick(rng, IN[1:] if place.en == "bridge" else IN).split("/"), the(place)
    else:
        place = pick(rng, [x for x in OBJECTS if x.en in ("table", "chair", "house", "door", "car", "tree", "boat", "lamp", "box", "bag",
            "coat", "hat") and x is not n])
        (p, fp), (o, fo) = pick(rng, ON).split("/"), the(place)
    words.append(place.en)
    fo = near(fp, fo)
    if s.startswith(("a ", "an ", "some ", *(x.split("/")[0] + " " for x in NUMBERS))):
        return f"there {'are' if plural else 'is'} {s} {p} {o}.", f"il y a {fs} {fo}.", words
    return f"{s} {'are' if plural else 'is'} {p} {o}.", f"{fs} {'sont' if plural else 'est'} {fo}.", words


def looks(rng: Random) -> tuple[str, str, list[str]]:
    """The house is big; The girls are not tired; She is happy."""
    words: list[str] = []
    living, plural = rng.random() < 0.5, rng.random() < 0.3
    n = pick(rng, BEINGS if living else OBJECTS)
    a = pick(rng, [a for a in ADJECTIVES if a[0] not in ("good", "bad") and (a[0] not in LIVING if living else a[0] in LOOSE)])
    e, m, f, p = pick(rng, OWNERS).split("/")
    s, fs = the(n, plural) if rng.random() < 0.7 else (f"{e} {n.ens if plural else n.en}",
        f"{p if plural else m if n.vowel or not n.fem else f} {n.frs if plural else n.fr}")
    words += [n.en, a[0], s.split()[0]]
    be, fbe = ("are", "sont") if plural else ("is", "est")
    form = a[1 + n.fem + 2 * plural]
    r = rng.random()
    if r < 0.2:
        return f"{s} {be} not {a[0]}.", f"{fs} {negate(fbe)} {form}.", words
    if r < 0.4:
        return f"{s} {be} very {a[0]}.", f"{fs} {fbe} très {form}.", words
    return f"{s} {be} {a[0]}.", f"{fs} {fbe} {form}.", words


def fixed(rng: Random) -> tuple[str, str, list[str]]:
    en, fr = pick(rng, PHRASES)
    return en, fr, ["fixed"]


PATTERNS = {"does": does, "moves": moves, "where": where, "looks": looks, "fixed": fixed}
PATTERN_MIX = ["does"] * 7 + ["moves"] * 4 + ["where"] * 5 + ["looks"] * 4 + ["fixed"]
