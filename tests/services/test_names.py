"""Short names: every file name that the model cards document, and what is none of a family."""

from __future__ import annotations

import pytest

from rwkvcli.services import names
from rwkvcli.services.names import Reference


@pytest.mark.parametrize(
    ("repo", "file", "name"),
    [
        ("rwkv7-g1", "rwkv7-g1k-1.5b-20260930-ctx25600", "g1-1.5b@20260930"),
        ("rwkv7-g1", "rwkv7-g0-7.2b-20250722-ctx4096", "g1-7.2b@20250722"),
        ("rwkv7-g1", "rwkv7-g1d-13.3b-20260131-ctx8192", "g1-13.3b@20260131"),
        ("rwkv7-g1", "rwkv7a-g1b-0.1b-20250819-ctx4096", None),
        ("rwkv7-g1", "rwkv7b-g1b-0.1b-20250822-ctx4096", None),
        ("rwkv-7-world", "RWKV-x070-World-0.1B-v2.8-20241210-ctx4096", "world7-0.1b@20241210"),
        ("rwkv-6-world", "RWKV-x060-World-1B6-v2.1-20240328-ctx4096", "world6-1.6b@20240328"),
        ("rwkv-6-world", "RWKV-x060-World-14B-v2.1-20240719-ctx4096", "world6-14b@20240719"),
        ("rwkv-5-world", "RWKV-5-World-0.1B-v1-20230803-ctx4096", "world5-0.1b@20230803"),
        ("rwkv-5-world", "RWKV-5-World-1B5-v2-20231025-ctx4096", "world5-1.5b@20231025"),
        ("rwkv-5-world", "RWKV-v5-Eagle-World-7B-v2-20240128-ctx4096", "world5-7b@20240128"),
        ("rwkv-4-world", "RWKV-4-World-1.5B-v1-fixed-20230612-ctx4096", "world4-1.5b@20230612"),
        ("rwkv-4-world", "RWKV-4-World-CHNtuned-1.5B-v1-20230620-ctx4096", None),
        ("rwkv-4-raven", "RWKV-4-Raven-14B-v12-Eng98%-Other2%-20230523-ctx8192", "raven-14b@20230523"),
        ("rwkv-4-raven", "RWKV-4-Raven-7B-v12-Eng49%-Chn49%-Jpn1%-Other1%-20230530-ctx8192", None),
        ("rwkv-4-pile-169m", "RWKV-4-Pile-169M-20220807-8023", "pile-169m@20220807"),
        ("rwkv-4-pile-1b5", "RWKV-4-Pile-1B5-20220929-ctx4096", "pile-1.5b@20220929"),
        ("rwkv-4-pile-14b", "RWKV-4-Pile-14B-20230313-ctx8192-test1050", "pile-14b@20230313"),
        ("rwkv-4-pile-3b", "RWKV-4-Pile-14B-20230313-ctx8192-test1050", None),
    ],
)
def test_file_names(repo: str, file: str, name: str | None) -> None:
    found = names.short_name(f"BlinkDL/{repo}", f"{file}.pth")
    assert (str(found) if found else None) == name
    if name is not None:
        parsed = names.alias(name)
        assert parsed is not None and parsed.repo == f"BlinkDL/{repo}"
        assert parsed.fits(f"{file}.pth") and names.alias(name.partition("@")[0]).fits(f"{file}.pth")  # type: ignore[union-attr]


def test_the_newest_wins_and_others_can_be_named() -> None:
    files = [
        "rwkv7-g1f-1.5b-20260419-ctx8192.pth",
        "rwkv7-g1k-1.5b-20260930-ctx25600.pth",
        "rwkv7-g1i-1.5b-20260805-ctx16384.pth",
        "rwkv7-g1k-2.9b-20260930-ctx25600.pth",
        "rwkv7b-g1z-1.5b-20270101-ctx4096.pth",
    ]
    for name, file in (
        ("g1-1.5b", files[1]),
        ("G1-1.5B-int4", files[1]),
        ("g1-1.5b-int6", files[1]),
        ("g1-1.5b-int5", files[1]),
        ("g1-1.5b@20260805", files[2]),
        ("g1-1.5b@g1f", files[0]),
        (f"g1-1.5b@{files[4]}", files[4]),
        ("g1-1.5b@20200101", None),
        ("g1-0.1b", None),
    ):
        alias = names.alias(name)
        assert alias is not None
        assert alias.newest(files) == file
        assert alias.newest(reversed(files)) == file


@pytest.mark.parametrize("text", ["demo", "g1", "g2-1.5b", "g1-1.5", "a/b", "g1-1.5b-int3", "model.pth", ""])
def test_what_is_no_short_name(text: str) -> None:
    assert names.alias(text) is None


def test_every_name_of_the_table_is_one() -> None:
    assert len(names.aliases()) == len(set(names.aliases())) > 25
    for text in names.aliases():
        alias = names.alias(text)
        assert alias is not None and str(alias) == text and alias.parameters > 10**8
    assert names.tokenizer_of("BlinkDL/rwkv-4-pile-1b5") == Reference(
        "EleutherAI/gpt-neox-20b", "tokenizer.json"
    )
    assert names.tokenizer_of("BlinkDL/rwkv7-g1") is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("g1-1.4b", "g1-1.5b"),
        ("wrold7-0.4b", "world7-0.4b"),
        ("raven", "raven-1.5b"),
        ("dmo", "demo"),
        ("here-1", "here-12"),
    ],
)
def test_near_names(text: str, near: str) -> None:
    assert names.near(text, ["here-12"])[0] == near
