//! The examples of docs/gateway.md, as they stand there: the files, and the command.

use std::process::Command;

use super::load::{Asks, Load};
use super::{Place, run, swap};
use crate::lab::programs::{Rounds, have, node_modules, python};

const PAGE: &str = include_str!("../../../../docs/gateway.md");

/// Blocks of a language in the order of the page.
fn blocks(language: &str) -> Vec<String> {
    // Every other piece is inside of two fences.
    let inside = PAGE.split("\n```").skip(1).step_by(2);
    inside
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .map(|text| format!("{text}\n"))
        .collect()
}

/// Writes the file that a block says it is, in its first lines.
#[track_caller]
fn file(place: &Place, language: &str, name: &str) {
    let text = blocks(language)
        .into_iter()
        .find(|text| text.lines().take(2).any(|line| line.contains(name)))
        .unwrap_or_else(|| panic!("docs/gateway.md has no {name}"));
    std::fs::write(place.path(name), text).expect("write");
}

/// The value of `--app` in the command that has this in it.
#[track_caller]
fn command(with: &str) -> String {
    let blocks = blocks("");
    let commands = blocks.iter().flat_map(|block| block.lines());
    let mut values = commands.filter_map(|line| Some(line.split_once("--app '")?.1));
    let value = values.find(|value| value.contains(with)).expect("a command with this in it");
    value.strip_suffix('\'').expect("the end of the command").to_owned()
}

#[track_caller]
fn survives_replacement(place: &Place, command: &str, language: &'static str) {
    let engine = run(place.gateway(""), command);
    let expected = match language {
        "Python" => |_: &str, target: &str, _: &str| format!("{target} from Python\n"),
        "Node" => |_: &str, target: &str, _: &str| format!("{target} from Node\n"),
        _ => |_: &str, target: &str, _: &str| format!("{target} from PHP\n"),
    };
    let load = Load::begin(engine.address(), Asks::Gets, expected);
    load.goes_on(20);
    for _ in 0..2 {
        swap(&engine);
        load.goes_on(20);
        engine.reload_well();
        load.goes_on(20);
    }
    load.end();
}

#[test]
fn asgi() {
    if python("applications::examples::asgi").is_none() {
        return;
    }
    let place = Place::with(&[]);
    file(&place, "python", "app.py");
    survives_replacement(&place, &command("uvicorn app:app"), "Python");
}

#[test]
fn wsgi() {
    if python("applications::examples::wsgi").is_none() {
        return;
    }
    let place = Place::with(&[]);
    file(&place, "python", "wsgi.py");
    survives_replacement(&place, &command("gunicorn"), "Python");
}

#[test]
fn node() {
    if node_modules("applications::examples::node").is_none() {
        return;
    }
    let place = Place::with(&[]);
    file(&place, "js", "app.js");
    survives_replacement(&place, &command("node app.js"), "Node");
}

#[test]
fn php() {
    if !have("applications::examples::php", "php", "--version") {
        return;
    }
    let place = Place::with(&[]);
    file(&place, "php", "app.php");
    survives_replacement(&place, &command("php -S"), "PHP");
}

/// The sessions of counter.py go on in the next process, and the next.
#[test]
fn sessions_of_websockets() {
    let Some(python) = python("applications::examples::sessions_of_websockets") else { return };
    let place = Place::with(&["client.py"]);
    file(&place, "python", "counter.py");
    let config = blocks("toml").into_iter().find(|text| text.contains("reconnect"));
    let engine = run(place.gateway(&config.expect("the setting")), &command("uvicorn counter:app"));
    let url = format!("ws://{}/", engine.address());
    let mut client =
        Rounds::begin(Command::new(python).arg(place.path("client.py")).args([&url, "8"]));
    for _ in 0..2 {
        swap(&engine);
        client.next();
        engine.reload_well();
        client.next();
    }
    client.end();
}
