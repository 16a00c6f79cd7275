"""Left and right by name, in the languages and spellings in use, and which structures are each other's mirror
image.

`kidney_left`, `LeftKidney`, `kidney_l`, `LKidney`, `Niere_links`, `Rein_gauche`, `左肾`. Words that mean a
side in any name decide alone. Short ones that mean something else elsewhere (`g`/`d`, `li`/`re`,
`sin`/`dex`, an `l` or `r` glued to a word) make a pair only where the data set has both names. Chambers of
the heart are no mirror pairs: they are told by their form, wherever the heart lies.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctseg.errors import UsageError

LEFT, RIGHT = "left", "right"
_HEART = re.compile(
    r"heart|atri(?:um|al|a\b|o)|ventr[ií][ck]|herz|vorhof|oreillette|coraz|cuore|c(?:œ|oe)ur"
    r"|[左右]心|心[房室脏臟臓]|сердц|предсерд|желудоч"
)
_BRAIN = re.compile(r"lateral|brain|cerebr|hirn|脑|脳")  # whose ventricles are mirror pairs
# where a single l is no side: "vertebra L 1"
_LUMBAR = re.compile(r"vert|wirbel|\bl?wk?\d|(?:\b|_)vb|dis[ck]|椎|^l[\s_-]*\d")
# Whole words, folded. English, German, Dutch, French, Spanish, Italian, Portuguese, Latin; Scandinavian,
# Slavic, Greek, Turkish; Chinese, Japanese, Korean.
_WORDS = {
    LEFT: r"left|lt?|lft|linke[rnsm]?|links|lks|gauches?|gche|izquierd[oa]s?|izqd?[oa]?|izd[oa]"
    r"|sinistr(?:[oaie]|um)|sinist(?:er)?|esquerd[oa]s?|esq"
    r"|vänster|venstre|vasen|lew[yae]|lev[ýáé]|лев(?:ый|ая|ое)|αριστερ\w*|左[侧側]?|왼쪽|좌측",
    RIGHT: r"right|rt?|rgt|rechte[rnsm]?|rechts|rts|droite?s?|derech[oa]s?|dch[oa]"
    r"|destr[oaie]|dext(?:er|r[aoie]|rum)?|direit[oa]s?"
    r"|höger|højre|høyre|oikea|praw[yae]|prav[ýáé]|прав(?:ый|ая|ое)|δεξι\w*|sağ|右[侧側]?|오른쪽|우측",
}
_UNSPACED = re.compile(r"([左右][侧側]?|왼쪽|오른쪽|좌측|우측)")
_LONG = {
    LEFT: r"left|links|linke[rsn]?|gauche|izquierd[oa]|sinistr[oa]|esquerd[oa]",
    RIGHT: r"right|rechts|rechte[rsn]?|droite?|derech[oa]|destr[oa]|direit[oa]",
}
# What an l or r is glued to: "LKidney", "rlung"; and the lobes of the lungs, "LUL", "RLL".
ORGANS = """
kidney lung breast adrenal femur hip humerus scapula clavicle clavicula parotid submand
submandibular eye lens optic opticnerve cochlea testis testicle ovary hippocampus orbit cornea
retina niere lunge mamma ul ll ml
"""
_ORGAN = "|".join(ORGANS.split())
# a whole word, "linkernier", "kidneyleft", "lkidney", "kidneyl"; groups: what else the word says
_SIDES = {
    side: re.compile(
        rf"(?:{_WORDS[side]})|(?:{long})(\w{{3,}})|(\w{{3,}})(?:{long})"
        rf"|{side[0]}({_ORGAN})|({_ORGAN}){side[0]}"
    )
    for side, long in _LONG.items()
}
# (left, right) words that need their partner in the data set, as the first or last word of a name.
SHORT = """
li re
g d
s d
sin dex
sin dext
sin dx
sn dx
sx dx
sn ds
izq der
izq dcha
izda dcha
izdo dcho
esq dir
esq dta
esq dto
gche dte
gche drt
g dt
ga dr
ga dt
sol sağ
좌 우
"""
_SHORT = [(left, right) for left, right in map(str.split, SHORT.strip().splitlines())]
# these make a name suspicious without a partner, too
_TELLING = frozenset(word for pair in _SHORT for word in pair if len(word) > 1)
_CAMEL = re.compile(r"(?:^|[^A-Za-z])[LR](?=[A-Z][a-z]{2})")
# not "LV", "LA", "LCA", which belong to the heart
_GLUED = re.compile(r"[lr](?!v|ca$|a(?!g$|\w{3}))[^\W\d]\w*|\w{3,}[lr]")
_SEPARATORS = re.compile(r"(?:[\s_/\\:;|()\[\]{}\"、。・]|(?<!\d)[.,]|[.,](?!\d))+")
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))


# ---- words of one name ------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """One form of what looks the same (NFKC, one dash, no invisible characters), upper and lower case still
    apart.
    """
    text = unicodedata.normalize("NFKC", name).translate(_DASHES)
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _tokens(name: str) -> list[str]:
    """The folded words of a name, each with the sign in front of it ("CTV-1cm": "ctv", "-1cm"). Nothing but
    separators is left out.
    """
    text = _plain(name)
    text = "".join(
        f"{c} " if (c.islower() or c.isdigit()) and after.isupper() else c
        for c, after in zip(text, text[1:] + " ")
    )
    text = _SEPARATORS.sub(" ", _UNSPACED.sub(r" \1 ", text).casefold())
    return re.sub(r"(?<=[^\s+-])(?=[+-])", " ", text).split()


def words_of(name: str) -> list[str]:
    """The words of a structure's name in lower case: "kidney_left", "LeftKidney" and "Kidney-L" all hold
    "kidney".
    """
    return [word for token in _tokens(name) if (word := token.strip("+-"))]


def _split(word: str) -> tuple[str | None, str]:
    """(side that a word of any name means, what else it says): "linkernier" is (left, "nier"), "l*" is (left,
    "*").
    """
    core = re.sub(r"\W+$", "", word)
    for side, pattern in _SIDES.items():
        if (found := pattern.fullmatch(core)) is not None:
            return side, "".join(group or "" for group in found.groups()) + word[len(core) :]
    return None, word


def _sided(name: str) -> bool:
    """Whether sides in the name are sides of the body."""
    text = _plain(name).casefold()
    return _HEART.search(text) is None or _BRAIN.search(text) is not None


def side_of(name: str) -> str | None:
    """ "left", "right", or None when the name has no side (or has both, or is a heart chamber)."""
    if not _sided(name):
        return None
    lumbar = _LUMBAR.search(_plain(name).casefold()) is not None
    found = {_split(word)[0] for word in words_of(name) if not (lumbar and len(word) == 1)} - {None}
    return found.pop() if len(found) == 1 else None


def without_side(name: str) -> tuple[str, ...]:
    """The words of a name in lower case, left and right left out."""
    return tuple(rest for word in words_of(name) if (rest := _split(word)[1]))


def spelling(name: str) -> tuple[str, str | None]:
    """(the name without separators, case and side; its side): equal for two spellings of one name. Letters of
    every script, digits and signs stay.

    Where a separator stands between digits it stays: "PTV_50_4" is not "PTV_504".
    """
    side, kept, after_side = side_of(name), [], False
    for token in _tokens(name):
        found, rest = _split(token.strip("+-")) if side is not None else (None, token)
        if found is not None:
            token = rest
        elif after_side and token[:1] == "-" and token[1:2].isalpha():  # "Left-Kidney": only a separator
            token = token[1:]
        after_side = found is not None
        if token:
            kept.append(token)
    return _join(kept) or ("" if side else name.casefold()), side


def _join(tokens: Sequence[str]) -> str:
    return "".join(
        f"_{token}" if before[-1:].isdigit() and token[:1].isdigit() else token
        for before, token in zip(["", *tokens], tokens)
    )


# ---- pairs among many names -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sides:
    """Which names are left and right. pairs: (left, right). lone: names of one side whose partner is not
    known.
    """

    pairs: tuple[tuple[str, str], ...]
    lone: tuple[str, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any] | None, names: Sequence[str]) -> Sides:
        """What `record` returned; from the names alone where nothing is recorded."""
        if record is None:
            return find_sides(names)
        return cls(tuple((left, right) for left, right in record["pairs"]), tuple(record["lone"]))

    def indices(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """Index pairs (left, right) of those of `names` that are each other's mirror image."""
        places = {name: index for index, name in enumerate(names)}
        return [
            (places[left], places[right]) for left, right in self.pairs if left in places and right in places
        ]

    def one_sided(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that a mirror image would turn into something that is not among them."""
        halves = {name for pair in self.pairs for name, other in (pair, pair[::-1]) if other not in names}
        return [name for name in names if name in halves or name in self.lone]


def one_sided(
    record: Mapping[str, Any] | None, structures: Sequence[str], organs: Sequence[str] = ()
) -> list[str]:
    """The structures, and the organs that guide to them, that forbid mirroring: their mirror image would
    carry a wrong name. record: see `Sides.of`.
    """
    sides = Sides.of(record, [*structures, *organs])
    return list(dict.fromkeys([*sides.one_sided(structures), *sides.one_sided(organs)]))


def find_sides(names: Sequence[str], declared: Sequence[tuple[str, str]] = ()) -> Sides:
    """The mirror pairs among all names of a data set. declared: pairs (left, right) that the user knows
    better; UsageError when they contradict.
    """
    named = [name for pair in declared for name in pair]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UsageError(
            "BAD_VALUE",
            f"data.pairs names '{twice}' twice",
            "name each structure once, for example --set data.pairs=kidney_a:kidney_b",
        )
    pairs = [
        (right, left) if side_of(left) == RIGHT or side_of(right) == LEFT else (left, right)
        for left, right in declared
    ]
    free = [name for name in dict.fromkeys(names) if name not in named]
    spelled: dict[tuple[str, str | None], list[str]] = {}
    for name in free:
        spelled.setdefault(spelling(name), []).append(name)
    for rest in dict.fromkeys(rest for rest, _ in spelled):
        of_left, of_right = (spelled.get((rest, side), []) for side in (LEFT, RIGHT))
        if len(of_left) == len(of_right) == 1:
            pairs.append((of_left[0], of_right[0]))
    paired = {name for pair in pairs for name in pair}
    by_words = {_join(_tokens(name)): name for name in free if name not in paired}
    used: set[str] = set()  # short words that this data set means as sides
    for words, name in by_words.items():
        for partner, pair in _partners(name):
            other = by_words.get(partner)
            if other is not None and not {name, other} & paired and words != partner:
                pairs.append((name, other))
                paired |= {name, other}
                used |= set(pair)
    lone = [
        name
        for name in free
        if name not in paired
        and _sided(name)
        and (side_of(name) or _CAMEL.search(_plain(name)) or set(_ends(name)) & (_TELLING | used))
    ]
    return Sides(tuple(pairs), tuple(lone))


def _ends(name: str) -> list[str]:
    """The first and the last word of a name that has several."""
    words = words_of(name)
    return [words[0], words[-1]] if len(words) > 1 else []


def _partners(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(how the right partner of a left name would be spelt, the short words that say so) for every way to
    read a short word or a glued letter as left.
    """
    tokens = _tokens(name) if _sided(name) else []
    for place, token in enumerate(tokens):
        word = token.strip("+-")
        # (what stands in the partner's name, the short words)
        readings: list[tuple[str, tuple[str, ...]]] = []
        if len(tokens) > 1 and place in (0, len(tokens) - 1):
            readings += [(token.replace(*pair), pair) for pair in _SHORT if word == pair[0]]
        if _GLUED.fullmatch(word) is not None:
            for partner in (re.sub("^l", "r", word), re.sub("l$", "r", word)):
                readings.append((token.replace(word, partner), ()))
        for partner, pair in readings:
            yield _join([*tokens[:place], partner, *tokens[place + 1 :]]), pair
