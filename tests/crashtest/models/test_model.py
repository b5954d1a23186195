"""Models as data: the shipped ones, and a user's own file."""

from pathlib import Path

import pytest

from headway.core.errors import ConfigError
from headway.crashtest.models import MODELS, load


def test_the_shipped_models() -> None:
    assert {"prefix", "apm", "posix", "ext4", "ext4-wb", "xfs", "btrfs"} <= set(MODELS)
    assert MODELS["ext4-wb"].names == MODELS["ext4"].names
    assert not MODELS["ext4-wb"].replace_waits_for_data


def test_a_users_model_may_start_from_a_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[mine]\nbase = "ext4"\ntear_bytes = [512]\n[other]\nbase = "mine"\nnames = "none"\n')
    models = load(file)
    assert models["mine"].replace_waits_for_data
    assert models["mine"].tear_bytes == (512,)
    assert models["other"].tear_bytes == (512,)
    assert models["other"].names == "none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[m]\nbase = "ext5"', "ext5"),
        ("[m]\nname_order = true", "name_order"),
        ('[m]\nnames = "some"', "none, directory, total"),
        ("[m]\nafter_link = 1", "after_link"),
        ("[m]\ntear_bytes = [0]", "tear_bytes"),
        ('[m]\nfills = ["ones"]', "fills"),
        ("m = 1", "not a model"),
        ("[m", "not TOML"),
    ],
)
def test_what_is_wrong_with_a_model_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(file)


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")
