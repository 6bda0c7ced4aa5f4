from __future__ import annotations

from pathlib import Path

from pip_settings import translate, uv_environment


def test_lists_are_split_and_missing_places_dropped(tmp_path: Path):
    gone = tmp_path / "gone"
    lines = [
        f"global.find-links='\\n{tmp_path}\\n{gone}\\n{tmp_path.as_uri()}'",
        f"global.extra-index-url='https://one.example/simple file://{gone} https://two.example/simple'",
        "global.index-url='https://mirror.example/simple'",
        "global.cert='/etc/ssl/mine.crt'",
        "global.timeout='60'",
    ]
    assert translate(lines) == {
        "UV_FIND_LINKS": f"{tmp_path},{tmp_path.as_uri()}",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "SSL_CERT_FILE": "/etc/ssl/mine.crt",
    }


def test_the_environment_wins_over_files_and_install_over_global(tmp_path: Path):
    lines = [
        ":env:.index-url='https://env.example'",
        "install.index-url='https://install.example'",
        "global.index-url='https://global.example'",
        "install.no-index='true'",
        "global.no-index='false'",
    ]
    assert translate(lines) == {"UV_DEFAULT_INDEX": "https://env.example", "UV_NO_INDEX": "true"}


def test_nothing_configured_is_nothing_set():
    assert translate([]) == {}


def test_pip_itself_is_asked(tmp_path: Path):
    environment = {"PATH": "", "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links =\n    {tmp_path}\n    {tmp_path / 'gone'}\n")
    found = uv_environment(environment)
    assert found["UV_FIND_LINKS"] == str(tmp_path)
    assert "UV_FIND_LINKS" not in uv_environment({**environment, "UV_FIND_LINKS": "/mine"})
