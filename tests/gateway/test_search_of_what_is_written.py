"""What is in a note, typed as it is there, is found: in every script, and in databases of every kind of locale."""

# ruff: noqa: RUF001 - characters that look alike are what it is about

import random
import unicodedata
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import httpx
import pytest

from dev.backend import Services
from tests.support import harness
from tests.support.isolation import alembic, settings_of_gateway, with_database

LOCALES = {
    "C": ["locale_provider libc locale 'C'"],
    "libc": ["locale_provider libc locale 'en_US.UTF-8'", "locale_provider libc locale 'C.UTF-8'"],
    "ICU": ["locale_provider icu icu_locale 'en-US' locale 'C.UTF-8'"],
    "ICU over C": ["locale_provider icu icu_locale 'und' locale 'C'"],
    "built in": ["locale_provider builtin builtin_locale 'C.UTF-8' locale 'C.UTF-8'"],
}
"""How each database is created; the second way is for servers without the locale of the first."""
INSERT = """
insert into notes (owner_id, title, description, created_date, updated_date, version)
select 1, title, description, now(), now(), 1
from unnest($1::text[], $2::text[]) with ordinality as note (title, description, place) order by place
"""


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


WRITTEN: dict[str, list[tuple[str, str]]] = {
    "words that are too common for an index": [
        ("The Who", "The Who"),
        ("The Who", "the who"),
        ("To be or not to be", "to be or not to be"),
        ("To be or not to be", '"to be or not to be"'),
        ("IT", "it"),
        ("Do it for her", "do it for her"),
        ("Vitamin A", "vitamin a"),
    ],
    "signs": [
        ("AT&T", "AT&T"),
        ("R&D budget", "r&d"),
        ("C++ and C#", "C++"),
        ("C++ and C#", "c#"),
        ("a .NET library", ".net"),
        ("100 % wool", "100 %"),
        ("50% off", "50%"),
        ("costs $9.99", "$9.99"),
        ("costs $9.99", "9.99"),
        ("12 € a month", "12 €"),
        ("#hashtag of the day", "#hashtag"),
        ("@mention of somebody", "@mention"),
        ("x <= y && y != z", "x <= y"),
        ("x <= y && y != z", "&&"),
        ("if (a[0] == '*') { return; }", "(a[0] == '*')"),
        ("<b>bold</b> text", "<b>bold"),
        ("<b>bold</b> text", "bold"),
        ("salt &amp; pepper", "&amp;"),
        ("~/notes_2026 \\ backup", "\\"),
        ("50%_of_it", "%_of"),
        ("What?!", "?!"),
        ("wait... what", "..."),
        ('he said "no"', '"no"'),
        ("don't panic", "don't"),
        ("don’t panic", "don't"),
        ("don't worry", "don’t"),
        ("2010–2020", "2010-2020"),
        ("-", "-"),
        ("*", "*"),
        ("_", "_"),
        ("|", "|"),
    ],
    "emoji": [
        ("🎉", "🎉"),
        ("party 🎉 tonight", "🎉"),
        ("party 🎉 tonight", "party 🎉"),
        ("I ❤️ ink", "❤"),
        ("I ❤ pens", "❤️"),
        ("👩‍💻 at work", "👩‍💻"),
        ("🇩🇪 flag", "🇩🇪"),
        ("👍🏽", "👍🏽"),
        ("✓ done", "✓"),
        ("→ next", "→"),
    ],
    "numbers": [
        ("invoice 2026-0042", "0042"),
        ("invoice 2026-0042", "2026-0042"),
        ("invoice 2026-0042", "invoice 0042"),
        ("CVE-2026-2332", "2332"),
        ("CVE-2026-2332", "cve-2026"),
        ("-7 degrees", "7 degrees"),
        ("-7 degrees", "-7 degrees"),
        ("-5", "-5"),
        ("+49 30 1234567", "1234567"),
        ("+49 30 1234567", "+49 30"),
        ("pi is 3.14159", "3.14159"),
        ("pi is 3.14159", "14159"),
        ("1e10 of them", "1e10"),
        ("at 12:30", "12:30"),
        ("1,234,567.89", "1,234,567"),
        ("v1.2.3", "1.2.3"),
        ("ISBN 978-3-16-148410-0", "148410"),
        ("10.0.0.1/24", "10.0.0.1"),
        ("٣٤٥ كتاب", "٣٤٥"),
    ],
    "addresses and paths": [
        ("https://www.example.com/docs/page.html", "example"),
        ("https://www.example.com/docs/page.html", "docs"),
        ("https://www.example.com/docs/page.html", "www.example.com"),
        ("https://www.example.com/docs/page.html", "https://www.example.com/docs/page.html"),
        ("https://www.example.com/docs/page.html", "page.html"),
        ("https://www.example.com/docs/page.html", "page example"),
        ("bob@example.org", "bob"),
        ("bob@example.org", "bob@example.org"),
        ("/etc/nginx/nginx.conf", "nginx.conf"),
        ("/etc/nginx/nginx.conf", "nginx"),
        ("/etc/nginx/nginx.conf", "/etc"),
        ("C:\\Users\\ada\\todo.txt", "C:\\Users"),
        ("C:\\Users\\ada\\todo.txt", "todo"),
        ("snake_case_name", "case"),
        ("snake_case_name", "snake_case_name"),
        ("camelCaseName", "casename"),
        ("well-known problem", "known"),
        ("well-known problem", "well-known"),
        ("?utm_source=mail&id=77", "utm_source"),
        ("550e8400-e29b-41d4-a716-446655440000", "e29b"),
    ],
    "accents": [
        ("Übung macht den Meister", "Übung"),
        ("Übung macht den Meister", decomposed("Übung")),
        (decomposed("Übungen"), "Übungen"),
        (decomposed("Übungen"), "ubungen"),
        ("a résumé, attached", "resume"),
        ("a résumé, attached", "RÉSUMÉ"),
        ("a resume without", "résumé"),
        ("a résumé, attached", "resume attached"),
        ("ÄRGER", "ärger"),
        ("Große Straße", "grosse strasse"),
        ("GROSSE STRASSE", "große straße"),
        ("Łódź", "lodz"),
        ("Smørrebrød", "smorrebrod"),
        ("cœur", "coeur"),
        ("İstanbul", "istanbul"),
        ("ısı", "isi"),
        ("señor Muñoz", "munoz"),
        ("Tiếng Việt", "tieng viet"),
        ("Đà Nẵng", "đà nẵng"),
        ("ﬁne ﬂower", "fine flower"),
        ("ＡＢＣ１２３", "abc123"),
        ("x² + y²", "x2"),
        ("soft\u00adhyphen", "softhyphen"),
        ("progressively", "progr"),
    ],
    "Cyrillic": [
        ("Привет, МИР", "мир"),
        ("Привет, МИР", "ПРИВЕТ"),
        ("Ёлка", "елка"),
        ("«Война и мир»", "война"),
        ("чай", "чай"),
        ("Київ — столиця", "київ"),
    ],
    "Greek": [("ΟΔΟΣ", "οδος"), ("Καλημέρα κόσμε", "καλημερα"), ("Σίσυφος", "ΣΙΣΥΦΟΣ"), ("Ελλάς", "ελλασ")],
    "Arabic": [("كِتَاب جديد", "كتاب"), ("كتاب قديم", "كِتَاب"), ("أحمد", "احمد"), ("مـرحبا", "مرحبا")],
    "Hebrew": [("שָׁלוֹם עולם", "שלום"), ("שלום לך", "שָׁלוֹם"), ("ספר", "ספר")],
    "Chinese": [
        ("今天天气很好", "天气"),
        ("今天天气很好", "今天天气很好"),
        ("北京，上海", "上海"),
        ("meeting 天气", "天"),
        ("繁體中文", "中文"),
    ],
    "Japanese": [
        ("東京タワー", "タワー"),
        ("ひらがなとカタカナ", "カタカナ"),
        ("ﾊﾝｶｸ", "ハンカク"),
        ("が", decomposed("が")),
    ],
    "Korean": [("안녕하세요 세계", "안녕"), ("안녕하세요 세계", decomposed("세계")), (decomposed("대한민국"), "민국")],
    "Thai": [("สวัสดีชาวโลก", "ชาว"), ("วันนี้อากาศดี", "อากาศ"), ("น้ำ", "น้ำ")],
    "Devanagari": [("नमस्ते दुनिया", "नमस्ते"), ("नमस्ते दुनिया", "दुनि"), ("हिन्दी", "हिन्दी")],
    "other scripts": [
        ("தமிழ் மொழி", "தமிழ்"),
        ("বাংলা ভাষা", "ভাষা"),
        ("ខ្មែរ", "ខ្មែរ"),
        ("ሰላም ለዓለም", "ሰላም"),
        ("ՀԱՅԱՍՏԱՆ", "հայաստան"),
        ("ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ", "საქართველო"),
        ("ພາສາລາວ", "ລາວ"),
        ("བོད་ཡིག", "བོད"),
        ("ᏣᎳᎩ", "ᏣᎳᎩ"),
        ("𐍅𐌿𐌻𐍆𐌹𐌻𐌰", "𐍅𐌿𐌻"),
    ],
}
PAIRS = [pair for pairs in WRITTEN.values() for pair in pairs]
NOTES = list(dict.fromkeys(text for text, _ in PAIRS))
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789.,-/:@",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "äöüßéèçñøåæœłđşığŽšč",
    "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєАБВГДЕЖ",
    "αβγδεζηθικλμνξοπρσςτυφχψωΑΒΓΔάέή",
    "אבגדהוזחטיכלמנסעפצקרשתםן",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह",
    "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮ",
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年",
    "あいうえおかきくけこがぎぐげごアイウエオカキクケコガギグ",
    "가나다라마바사아자차카타파하각난닫",
    "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "🎉🚀❤👍🌍✓→∑€©",
]


@asynccontextmanager
async def database_in(servers: Services, ways: list[str]) -> AsyncIterator[str]:
    """The URL of a migrated database with one of these locales, as an administrator."""
    name = f"inkwell_locale_{uuid4().hex[:12]}"
    admin = await asyncpg.connect(servers.database_url)
    for way in ways:
        try:
            await admin.execute(f"create database {name} template template0 encoding 'UTF8' {way}")
            break
        except asyncpg.WrongObjectTypeError:
            assert way != ways[-1]
        except asyncpg.FeatureNotSupportedError:
            pytest.skip("Postgres was built without ICU")
    url = with_database(servers.database_url, name)
    await harness.create_roles(url)
    alembic(with_database(url, name, "inkwell_migrator"), "upgrade", "head")
    yield url
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture(scope="module", params=LOCALES)
async def locale_url(servers: Services, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a database in each locale."""
    async with database_in(servers, LOCALES[request.param]) as url:
        yield url


@asynccontextmanager
async def library(servers: Services, url: str, notes: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway whose owner has these notes, the even ones in titles, the odd ones in descriptions."""
    admin = await asyncpg.connect(url)
    await admin.execute("truncate notes restart identity")
    texts = [(note, "") if number % 2 else ("", note) for number, note in enumerate(notes, 1)]
    await admin.execute(INSERT, *map(list, zip(*texts, strict=True)))
    await admin.close()
    async with harness.gateway(settings_of_gateway(servers, url, "inkwell-locale")) as client:
        yield client


async def find(client: httpx.AsyncClient, q: str) -> tuple[str, list[int]]:
    """What matched, and the ids of the notes."""
    response = await client.get("/notes/search", params={"q": q, "limit": 1000})
    assert response.status_code == 200, (q, response.text)
    return response.json()["matched"], [note["id"] for note in response.json()["notes"]]


async def test_what_is_written_is_found_as_it_is_typed(servers: Services, locale_url: str) -> None:
    missed = {}
    async with library(servers, locale_url, NOTES) as client:
        for note, q in PAIRS:
            matched, ids = await find(client, q)
            if matched == "similar" or NOTES.index(note) + 1 not in ids or len(ids) > len(NOTES) // 4:
                missed[note, q] = matched, [NOTES[each - 1] for each in ids]

    assert len(PAIRS) >= 120
    assert missed == {}


async def test_every_part_of_a_note_finds_it(servers: Services, locale_url: str) -> None:
    chance = random.Random(25)  # noqa: S311 - no secret
    notes = [" ".join(random_words(chance)) for _ in range(1000)]
    async with library(servers, locale_url, notes) as client:
        for _ in range(60):
            number = chance.randrange(len(notes))
            for q in (random_part(chance, notes[number]), chance.choice(notes[number].split())):
                matched, ids = await find(client, q)
                assert number + 1 in ids, (q, notes[number])
                assert matched != "similar"


def random_words(chance: random.Random) -> Iterator[str]:
    for alphabet in chance.sample(ALPHABETS, chance.randrange(1, 4)):
        for _ in range(chance.randrange(1, 4)):
            yield "".join(chance.choices(alphabet, k=chance.randrange(1, 9)))


def random_part(chance: random.Random, text: str) -> str:
    """Three characters or more of the text, not all of them spaces."""
    while True:
        start = chance.randrange(len(text))
        part = text[start : start + chance.randrange(3, 30)]
        if len(part.strip()) >= min(3, len(text)):
            return part
