//! Rust sources as this test needs them: without comments, strings and tests, and as a list of the
//! paths that they name.
//!
//! No parser of Rust is pulled in for this: a few token rules do, and what they cannot see (a path
//! that a macro puts together) nobody writes here.
//!
//! Must not know: which paths are allowed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One file of the engine.
pub struct Source {
    /// Relative to `src`, with slashes.
    pub name: String,
    /// As it is on disk.
    pub text: String,
    /// Its module path; empty for `lib.rs` and `main.rs`.
    pub module: Vec<String>,
    /// True if it is compiled for tests only.
    pub is_test: bool,
    /// The text with comments, strings and, unless it is a test, `#[cfg(test)]` items blanked out.
    /// Lines stay where they are.
    pub code: String,
}

/// A path that begins at the root of the crate, and the line that names it.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    pub path: Vec<String>,
}

impl Source {
    /// All sources below `src`.
    pub fn all(src: &Path) -> Vec<Source> {
        let mut files = Vec::new();
        collect(src, &mut files);
        files.sort();
        let mut sources: Vec<Source> = files.iter().map(|file| Source::read(src, file)).collect();
        let test_modules: BTreeSet<Vec<String>> = sources
            .iter()
            .flat_map(|source| {
                let (_, modules) = without_tests(&source.code);
                modules.into_iter().map(|module| [source.module.clone(), vec![module]].concat())
            })
            .collect();
        for source in &mut sources {
            let mut above = (1..=source.module.len()).map(|length| &source.module[..length]);
            source.is_test = above.any(|module| test_modules.contains(module));
            if !source.is_test {
                source.code = without_tests(&source.code).0;
            }
        }
        sources
    }

    fn read(src: &Path, file: &Path) -> Source {
        let name = file.strip_prefix(src).expect("below src").to_string_lossy().into_owned();
        let text = fs::read_to_string(file).expect("a source");
        let mut module: Vec<String> =
            name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            module.pop();
        }
        let code = code_only(&text);
        Source { name, text, module, is_test: false, code }
    }

    /// The layer that it belongs to; `None` for the roots of the crate.
    pub fn layer(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// Every path from the root of the crate that it names, by `crate::` or by enough `super::`.
    pub fn named(&self) -> Vec<Named> {
        named(&self.code, &self.module)
    }

    /// The lines with this word, from 1.
    pub fn lines_with_word(&self, word: &str) -> Vec<usize> {
        let tokens = tokens(&self.code);
        tokens.iter().filter(|(_, token)| *token == word).map(|&(line, _)| line).collect()
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Blanks out comments, strings and characters.
pub fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut index = 0;
    while index < chars.len() {
        let end = match chars[index] {
            '/' if at(index + 1) == '/' => {
                (index..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len())
            }
            '/' if at(index + 1) == '*' => end_of_comment(&chars, index),
            '"' => end_of_string(&chars, index + 1),
            'r' if index == 0 || !is_word(at(index - 1)) || "bc".contains(at(index - 1)) => {
                end_of_raw_string(&chars, index).unwrap_or(index)
            }
            '\'' if at(index + 1) == '\\' => {
                // From behind the escaped character, which may be a quote.
                (index + 3..chars.len()).find(|&i| chars[i] == '\'').map_or(chars.len(), |i| i + 1)
            }
            '\'' if at(index + 2) == '\'' => index + 3,
            _ => index,
        };
        if end == index {
            code.push(chars[index]);
            index += 1;
        }
        for &blanked in &chars[index.min(end)..end] {
            code.push(if blanked == '\n' { '\n' } else { ' ' });
        }
        index = index.max(end);
    }
    code
}

fn end_of_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut index = start;
    while index + 1 < chars.len() {
        match (chars[index], chars[index + 1]) {
            ('/', '*') => (depth, index) = (depth + 1, index + 2),
            ('*', '/') => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            return index;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut index = start;
    while index < chars.len() && chars[index] != '"' {
        index += if chars[index] == '\\' { 2 } else { 1 };
    }
    (index + 1).min(chars.len())
}

fn end_of_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start + 1..].iter().take_while(|&&one| one == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |index: usize| {
        let behind = &chars[index + 1..];
        chars[index] == '"' && behind.len() >= hashes && behind[..hashes].iter().all(|&c| c == '#')
    };
    Some((open + 1..chars.len()).find(|&i| closes(i)).map_or(chars.len(), |i| i + 1 + hashes))
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Blanks out items that are compiled for tests only; also the names of modules among them that are
/// in files of their own.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut rest = code;
    let mut kept = String::with_capacity(code.len());
    let mut modules = Vec::new();
    let first = |text: &str| {
        ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|start| text.find(start)).min()
    };
    while let Some(start) = first(rest) {
        let (before, item) = rest.split_at(start);
        kept.push_str(before);
        let (item, behind) = item.split_at(end_of_item(item));
        let words = item.split_once(']').map_or("", |(_, item)| item).trim();
        // Other tests may use what is in it.
        let words = words.strip_prefix("pub(crate) ").unwrap_or(words);
        if let Some(name) = words.strip_prefix("mod ").and_then(|name| name.strip_suffix(';')) {
            modules.push(name.trim().to_owned());
        }
        kept.extend(item.chars().map(|one| if one == '\n' { '\n' } else { ' ' }));
        rest = behind;
    }
    kept.push_str(rest);
    (kept, modules)
}

/// Bytes up to the end of an item and its attributes.
fn end_of_item(item: &str) -> usize {
    let mut depth = 0;
    for (index, character) in item.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(character, ';' | '}') {
            return index + 1;
        }
    }
    item.len()
}

/// Words and single characters, with their lines; `::` is one token.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|one| !is_word(one)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, behind) = rest.split_at(length);
            tokens.push((number + 1, token));
            rest = behind.trim_start();
        }
    }
    tokens
}

fn named(code: &str, module: &[String]) -> Vec<Named> {
    let tokens = tokens(code);
    let word = |index: usize| tokens.get(index).map_or("", |&(_, token)| token);
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let (line, token) = tokens[index];
        let begins = word(index + 1) == "::" && (index == 0 || word(index - 1) != "::");
        let mut prefix = match token {
            "crate" if begins => Vec::new(),
            "super" if begins => module[..module.len().saturating_sub(1)].to_vec(),
            _ => {
                index += 1;
                continue;
            }
        };
        index += 2;
        while word(index) == "super" && word(index + 1) == "::" {
            prefix.pop();
            index += 2;
        }
        index = tree(&tokens, index, &prefix, line, &mut found);
    }
    found
}

/// Reads what follows `prefix::`; the index behind it.
fn tree(
    tokens: &[(usize, &str)],
    mut index: usize,
    prefix: &[String],
    line: usize,
    found: &mut Vec<Named>,
) -> usize {
    let word = |index: usize| tokens.get(index).map_or("", |&(_, token)| token);
    if word(index) == "{" {
        index += 1;
        while !["}", ""].contains(&word(index)) {
            index = tree(tokens, index, prefix, line, found);
            // What is left of a branch: `as name`, a comma.
            while ![",", "}", ""].contains(&word(index)) {
                index += 1;
            }
            if word(index) == "," {
                index += 1;
            }
        }
        return index + 1;
    }
    let mut path = prefix.to_vec();
    path.push(word(index).to_owned());
    index += 1;
    if word(index) == "::" && (word(index + 1) == "{" || word(index + 1).starts_with(is_word)) {
        return tree(tokens, index + 1, &path, line, found);
    }
    found.push(Named { line, path });
    index
}

#[test]
fn sources_are_read_as_the_compiler_reads_them() {
    let text = r##"
        use crate::{alpha::{self, One}, beta::Two as Three, gamma};
        // crate::comment /* crate::nested */
        const A: &str = "crate::string \" crate::escaped"; const B: &str = r#"crate::"raw"#;
        const C: char = '"'; const D: char = '\''; fn f<'a>(x: &'a u8) -> &'a u8 { x }
        /* crate::one /* crate::two */ crate::three */
        fn g() { super::super::delta::h::<u8>(); $crate::epsilon!(); super::near(); }
        #[cfg(test)]
        mod inside { use crate::zeta; }
        #[cfg(test)]
        mod outside;
        use crate::eta;
    "##;
    let (code, modules) = without_tests(&code_only(text));
    assert_eq!(modules, ["outside"]);
    assert_eq!(code.lines().count(), text.lines().count());
    let module = ["top".to_owned(), "middle".to_owned(), "low".to_owned()];
    let paths: Vec<String> =
        named(&code, &module).iter().map(|named| named.path.join("::")).collect();
    let expected = [
        "alpha::self",
        "alpha::One",
        "beta::Two",
        "gamma",
        "top::delta::h",
        "epsilon",
        "top::middle::near",
        "eta",
    ];
    assert_eq!(paths, expected);
}
