//! Each kind's `code` list in `pipeline.yaml` names every file of ours that its entry file reaches by `mod`,
//! `use crate::`, `super::`, `self::` or `include_*!`. A file that is missed there could change a result and leave its
//! key as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

/// Source text with comments blanked, and the same with strings blanked too; offsets are those of the file.
struct Source {
    text: Vec<u8>,
    code: Vec<u8>,
}

impl Source {
    fn read(source: &str) -> Source {
        let bytes = source.as_bytes();
        let (mut text, mut code) = (bytes.to_vec(), bytes.to_vec());
        let blank = |out: &mut Vec<u8>, from: usize, to: usize| {
            out[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
        };
        let find = |from: usize, what: &str| source[from..].find(what).map_or(bytes.len(), |i| from + i);
        let mut i = 0;
        while i < bytes.len() {
            let rest = &bytes[i..];
            let is_word = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
            let hashes = rest.iter().skip(1).take_while(|b| **b == b'#').count();
            if rest.starts_with(b"//") {
                let end = find(i, "\n");
                blank(&mut text, i, end);
                blank(&mut code, i, end);
                i = end;
            } else if rest.starts_with(b"/*") {
                let end = (find(i, "*/") + 2).min(bytes.len());
                blank(&mut text, i, end);
                blank(&mut code, i, end);
                i = end;
            } else if rest[0] == b'r' && !is_word && rest.get(1 + hashes) == Some(&b'"') {
                let close = format!("\"{}", "#".repeat(hashes));
                let end = (find(i + hashes + 2, &close) + close.len()).min(bytes.len());
                blank(&mut code, i, end);
                i = end;
            } else if rest[0] == b'"' {
                let mut end = i + 1;
                while end < bytes.len() && bytes[end] != b'"' {
                    end += if bytes[end] == b'\\' { 2 } else { 1 };
                }
                let end = (end + 1).min(bytes.len());
                blank(&mut code, i, end);
                i = end;
            } else if rest.starts_with(b"'\\") {
                // An escaped character; a lifetime has no closing quote and is left alone.
                let end = (find(i + 3, "'") + 1).min(bytes.len());
                blank(&mut code, i, end);
                i = end;
            } else if rest[0] == b'\'' && rest.get(2) == Some(&b'\'') {
                blank(&mut code, i, i + 3);
                i += 3;
            } else {
                i += 1;
            }
        }
        let mut source = Source { text, code };
        source.blank_tests();
        source
    }

    /// Blanks the items under `#[cfg(test)]`: they are in no program.
    fn blank_tests(&mut self) {
        const MARK: &str = "#[cfg(test)]";
        while let Some(from) = String::from_utf8_lossy(&self.code).find(MARK) {
            let (mut depth, mut end) = (0, from + MARK.len());
            while end < self.code.len() {
                match self.code[end] {
                    b'{' => depth += 1,
                    b'}' => depth -= 1,
                    _ => {}
                }
                end += 1;
                if depth == 0 && matches!(self.code[end - 1], b'}' | b';') {
                    break;
                }
            }
            self.code[from..end].fill(b' ');
            self.text[from..end].fill(b' ');
        }
    }
}

/// The paths of a `use` tree or an expression that begins at `at`, behind `crate::`: `a::{b, c::d}` is a::b, a::c::d.
fn paths(code: &[u8], at: &mut usize, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    loop {
        while code.get(*at).is_some_and(u8::is_ascii_whitespace) {
            *at += 1;
        }
        if code.get(*at) == Some(&b'{') {
            *at += 1;
            while *at < code.len() && code[*at] != b'}' {
                let before = *at;
                paths(code, at, &path, found);
                while *at < code.len() && !matches!(code[*at], b',' | b'}') {
                    *at += 1;
                }
                if code.get(*at) == Some(&b',') || *at == before {
                    *at += 1;
                }
                while code.get(*at).is_some_and(u8::is_ascii_whitespace) {
                    *at += 1;
                }
            }
            *at += 1;
            return;
        }
        let word = code[*at..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        if word == 0 {
            break;
        }
        path.push(String::from_utf8_lossy(&code[*at..*at + word]).into_owned());
        *at += word;
        if !code[*at..].starts_with(b"::") {
            break;
        }
        *at += 2;
    }
    found.push(path);
}

/// The file of a module, given its path below the crate's root.
fn file_of(src: &Path, module: &[String]) -> Option<PathBuf> {
    let folder = module.iter().fold(src.to_path_buf(), |folder, name| folder.join(name));
    [folder.with_extension("rs"), folder.join("mod.rs")].into_iter().find(|file| file.is_file())
}

/// The module path of a file below `src`.
fn module_of(src: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(src).expect("a file below src").with_extension("");
    let names = relative.components().map(|c| c.as_os_str().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.collect();
    names.pop_if(|last| last == "mod");
    names
}

/// The files that one file reaches directly.
fn reached(src: &Path, file: &Path) -> BTreeSet<PathBuf> {
    let source = Source::read(&fs::read_to_string(file).expect("a source file"));
    let module = module_of(src, file);
    let mut wanted: Vec<Vec<String>> = Vec::new();
    let code = &source.code;
    let starts = |i: usize, word: &str| {
        let bounded = i == 0 || !(code[i - 1].is_ascii_alphanumeric() || matches!(code[i - 1], b'_' | b':'));
        bounded && code[i..].starts_with(word.as_bytes())
    };
    let mut files = BTreeSet::new();
    for i in 0..code.len() {
        if starts(i, "mod ") {
            let name = code[i + 4..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
            if code.get(i + 4 + name) == Some(&b';') {
                let name = String::from_utf8_lossy(&code[i + 4..i + 4 + name]).into_owned();
                let child = [&module[..], &[name]].concat();
                files.insert(file_of(src, &child).unwrap_or_else(|| panic!("no file for module {child:?}")));
            }
        }
        for (word, base) in [("crate::", Vec::new()), ("self::", module.clone())] {
            if starts(i, word) {
                paths(code, &mut (i + word.len()), &base, &mut wanted);
            }
        }
        if starts(i, "super::") {
            let (mut base, mut at) = (module.clone(), i);
            while code[at..].starts_with(b"super::") {
                base.pop();
                at += "super::".len();
            }
            paths(code, &mut at, &base, &mut wanted);
        }
        for word in ["include_str!", "include_bytes!", "include!"] {
            if starts(i, word) {
                let text = String::from_utf8_lossy(&source.text[i..]).into_owned();
                let name = text.split('"').nth(1).expect("include_*! with a literal path");
                files.insert(plain(&file.parent().expect("a folder").join(name)));
            }
        }
    }
    for path in wanted {
        for end in 1..=path.len() {
            // A module written inline has no file; what lies below it may have one.
            files.extend(file_of(src, &path[..end]));
        }
    }
    files
}

/// `a/../b` as `b`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
        plain
    })
}

/// Every file that the entry file reaches, itself among them.
fn closure(src: &Path, entry: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::from([entry.to_path_buf()]);
    let mut next = vec![entry.to_path_buf()];
    while let Some(file) = next.pop() {
        if file.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        next.extend(reached(src, &file).into_iter().filter(|found| all.insert(found.clone())));
    }
    all
}

/// The kinds that run a word of `stages`: name, word, `code` list.
fn kinds(text: &str) -> Vec<(String, String, Vec<String>)> {
    let pipeline: BTreeMap<String, Value> = serde_saphyr::from_str(text).expect("pipeline.yaml is YAML");
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(String::from).collect()
    };
    let kinds = pipeline["kinds"].as_object().expect("kinds");
    kinds
        .iter()
        .filter_map(|(name, kind)| {
            let run = words(&kind["run"]);
            // A fixed kind is keyed by what it promises, not by its code.
            let is_ours = run.first().is_some_and(|program| program == "stages") && kind["fixed"] != true;
            is_ours.then(|| (name.clone(), run[1].clone(), words(&kind["code"])))
        })
        .collect()
}

#[test]
fn code_lists_are_complete() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let src = root.join("stages/src");
    let kinds = kinds(&fs::read_to_string(root.join("pipeline.yaml")).expect("pipeline.yaml"));
    assert!(kinds.iter().any(|(name, ..)| name == "train"), "pipeline.yaml has no kind `train`");
    let mut wrong = String::new();
    for (kind, word, code) in kinds {
        let listed: Vec<PathBuf> = code.iter().map(|entry| root.join(entry)).collect();
        for (entry, path) in code.iter().zip(&listed).filter(|(_, path)| !path.exists()) {
            assert!(
                !entry.contains('*'),
                "{kind}: code: {entry}: this test follows files and folders, not globs"
            );
            wrong += &format!("  {kind}: code: {entry}: does not exist ({})\n", path.display());
        }
        for file in closure(&src, &src.join(format!("{word}.rs"))) {
            if !listed.iter().any(|path| file.starts_with(path)) {
                let file = file.strip_prefix(root).expect("below the workspace").display();
                wrong += &format!("  {kind}: code: {file} is missing\n");
            }
        }
    }
    assert!(wrong.is_empty(), "pipeline.yaml:\n{wrong}");
}

#[test]
fn reads_kinds() {
    let text = "vars:\n  a: 1\nkinds:\n  fetch:\n    run: [stages, fetch]\n    fixed: true\n  # a remark\n  prepare:\n    \
                run: [stages, prepare]\n    code: [a.rs,   # why\n           b]\n  sort:\n    shell: sort\n\nstages:\n  x:\n";
    assert_eq!(kinds(text), [("prepare".into(), "prepare".into(), vec!["a.rs".into(), "b".into()])]);
}

#[test]
fn follows_every_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let src = folder.path().join("src");
    let write = |name: &str, text: &str| {
        let path = src.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write(
        "entry.rs",
        r##"//! use crate::comment;
        use crate::{a::{self, b::{C, D}}, single};
        mod child;
        /* use crate::comment; */
        fn f<'a>() { let x = '"'; let y = "use crate::comment"; let z = r#"" crate::comment"#; inline::crate_word(); }
        const T: &str = include_str!("../text/t.css");
        fn g() { crate::inline::call() }
        #[cfg(test)]
        mod tests { use crate::comment; fn f() { { } } }
        #[cfg(test)]
        mod hidden;
        fn h() { crate::last::f() }"##,
    );
    write("a.rs", "pub struct S;");
    write("a/b.rs", "use super::super::up; use super::sibling::{X}; use self::deep::Y;");
    write("a/sibling.rs", "");
    write("a/b/deep.rs", "");
    for name in ["up.rs", "single.rs", "entry/child.rs", "inline.rs", "last.rs", "comment.rs", "other.rs"] {
        write(name, "");
    }
    write("../text/t.css", "use crate::other;");
    let found = closure(&src, &src.join("entry.rs"));
    let names: Vec<String> = found
        .iter()
        .map(|file| file.strip_prefix(folder.path()).expect("below").display().to_string())
        .collect();
    let expected = [
        "src/a/b/deep.rs",
        "src/a/b.rs",
        "src/a/sibling.rs",
        "src/a.rs",
        "src/entry/child.rs",
        "src/entry.rs",
        "src/inline.rs",
        "src/last.rs",
        "src/single.rs",
        "src/up.rs",
        "text/t.css",
    ];
    let sorted = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(names), sorted(expected.map(String::from).to_vec()));
}
