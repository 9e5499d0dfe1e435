//! prepare of MultiNLI: from generated pairs with a small vocabulary, from files that are wrong, and from the real pairs
//! of the mirror where there is one, whose tokens are compared with Python's.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stages::data::Examples;
use stages::data::multinli::SET;
use stages::{prepare, subsample};
use support::*;
use tempfile::{TempDir, tempdir};

const WORDS: [&str; 13] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "no", "##s", ",", "dog", "cafe"];

type Pair = (Option<&'static str>, &'static str, i64);

/// Label 2 of the Hub is contradiction (0), 0 entailment (1), 1 neutral (2).
const PAIRS: [Pair; 5] = [
    (Some("The cat sat"), "No cat", 2),
    (Some("the dogs"), "the dog", 0),
    (Some("Café, the cat"), "no, dog", 1),
    (Some("sat"), "zebra [SEP]", 1),
    (Some(""), "no", 0),
];
const TABLE: &str = ",gold_label,sentence2_has_negation,split\n0,0,1,0\n1,1,0,2\n4,2,1,1\n5,2,0,0\n9,1,1,0\n";

/// Generated files in their folders, and a place for the output.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempdir().unwrap());
        for (file, rows) in SET.files.iter().zip([&PAIRS[..3], &PAIRS[3..4], &PAIRS[4..]]) {
            write_pairs(&files.at(file), rows);
        }
        files.write("files/metadata_random.csv", TABLE);
        files.write("tokenizer/vocab.txt", &WORDS.join("\n"));
        files
    }
    fn at(&self, file: &str) -> PathBuf {
        self.0.path().join("files").join(file)
    }
    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fn prepare(&self, params: Value) -> anyhow::Result<Examples> {
        let root = self.0.path();
        prepare::run(job(
            root,
            params,
            &[("files", &root.join("files")), ("tokenizer", &root.join("tokenizer"))],
        ))?;
        Examples::open(&root.join("out"))
    }
    fn fails(&self, params: Value) -> String {
        let error = self.prepare(params).err().expect("an error");
        assert_eq!(stages::job::exit_code(&error), 2, "{error:#}");
        assert!(!self.0.path().join("out/meta.json").exists());
        format!("{error:#}").replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn params() -> Value {
    json!({"dataset": "multinli", "variant": "mirror", "exact": false, "note": "generated", "sequence": 10})
}

#[test]
fn pairs_by_hand() {
    let files = Files::new();
    let examples = files.prepare(params()).unwrap();
    assert!(examples.is_text());
    assert_eq!(examples.labels(), [0, 1, 2, 2, 1]);
    assert_eq!(examples.attributes(), [1, 0, 1, 0, 1]);
    assert_eq!(examples.splits(), [0, 2, 1, 0, 0]);
    assert_eq!((0..5).map(|i| examples.group(i)).collect::<Vec<_>>(), [1, 2, 5, 4, 3]);
    let meta = examples.meta();
    assert_eq!((meta.sequence, meta.vocabulary, meta.n_attributes), (Some(10), Some(13), 2));
    assert_eq!(meta.counts.train, [0, 1, 0, 1, 1, 0]);
    for (i, (ids, types, length)) in [
        ([2, 5, 6, 7, 3, 8, 6, 3, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0], 8),
        // dogs: dog ##s
        ([2, 5, 11, 9, 3, 5, 11, 3, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0], 8),
        // The accent goes; of 4 + 3 tokens 7 fit.
        ([2, 12, 10, 5, 6, 3, 8, 10, 11, 3], [0, 0, 0, 0, 0, 0, 1, 1, 1, 1], 10),
        // zebra is unknown; a special word in a text is taken for one, as Python's tokenizers do.
        ([2, 7, 3, 1, 3, 3, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0, 0, 0], 6),
        ([2, 3, 8, 3, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0, 0, 0], 4),
    ]
    .into_iter()
    .enumerate()
    {
        let tokens = examples.tokens(i);
        assert_eq!((tokens.ids, tokens.types, tokens.length), (&ids[..], &types[..], length), "{i}");
    }
    // The longer text is cut first, from its end.
    let short =
        files.prepare(json!({"dataset": "multinli", "variant": "mirror", "exact": false, "sequence": 8}));
    assert_eq!(short.unwrap().tokens(2).ids, [2, 12, 10, 5, 3, 8, 10, 3]);
    // Choosing rows works as for images.
    let root = files.0.path();
    subsample::run(job(&root.join("chosen"), json!({"scheme": "published"}), &[("data", &root.join("out"))]))
        .unwrap();
    let chosen = stages::data::indices::Indices::open(&root.join("chosen/out"), &examples).unwrap();
    assert_eq!(
        (&chosen.train[..], &chosen.validation[..], &chosen.test[..]),
        (&[0, 3, 4][..], &[2][..], &[1][..])
    );
}

#[test]
fn threads_change_nothing() {
    let files = Files::new();
    let bytes = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| files.prepare(params())).unwrap();
        fs::read(files.0.path().join("out/examples.safetensors")).unwrap()
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn what_does_not_fit_is_told_with_its_place() {
    let table = |text: &str| {
        let files = Files::new();
        files.write("files/metadata_random.csv", text);
        files.fails(params())
    };
    const CSV: &str = "files/metadata_random.csv";
    let hint = "\nhint: the table does not belong to these files, or their order is another";
    let at = format!("{CSV}: line 4: gold_label: 1, but 2 in files/{}: row 2{hint}", SET.files[0]);
    assert_eq!(table(&TABLE.replace("4,2,1,1", "4,1,1,1")), at);
    let at =
        format!("{CSV}: line 5: sentence2_has_negation: 1, but 0 in files/{}: row 0{hint}", SET.files[1]);
    assert_eq!(table(&TABLE.replace("5,2,0,0", "5,2,1,0")), at);
    assert_eq!(table(&TABLE.replace("9,1,1,0\n", "")), format!("{CSV}: 4 rows for 5 pairs{hint}"));
    assert_eq!(
        table(&TABLE.replace("4,2,1,1", "4,2,1,3")),
        format!("{CSV}: line 4: split: 3 is not in 0..=2")
    );
    assert_eq!(
        table(&TABLE.replace("4,2,1,1", "4,2,1")),
        format!("{CSV}: line 4: four whole numbers are expected, found `4,2,1`")
    );
    assert_eq!(table(&TABLE.replace("9,1,1,0", "5,1,1,0")), format!("{CSV}: line 6: number 5 does not rise"));
    assert!(table("a,b\n").starts_with(&format!("{CSV}: line 1: `,gold_label,")), "{}", table("a,b\n"));

    let pair = |pair: Pair| {
        let files = Files::new();
        write_pairs(&files.at(SET.files[0]), &[PAIRS[0], PAIRS[1], pair]);
        files.fails(params())
    };
    assert_eq!(
        pair((Some("a"), "no", 3)),
        format!("files/{}: row 2: label: 3 is not in 0..=2", SET.files[0])
    );
    // The Hub's mark for pairs without a gold label.
    assert_eq!(
        pair((Some("a"), "no", -1)),
        format!("files/{}: row 2: label: -1 is not in 0..=2", SET.files[0])
    );
    assert_eq!(pair((None, "no", 1)), format!("files/{}: row 2: premise: null", SET.files[0]));

    let files = Files::new();
    fs::remove_file(files.at("metadata_random.csv")).unwrap();
    assert_eq!(files.fails(params()), format!("{CSV}: No such file or directory (os error 2)"));

    let files = Files::new();
    files.write("tokenizer/vocab.txt", "[PAD]\n[UNK]\nthe\n");
    assert_eq!(files.fails(params()), "tokenizer/vocab.txt: no word [SEP]");
    fs::remove_file(files.0.path().join("tokenizer/vocab.txt")).unwrap();
    assert_eq!(files.fails(params()), "tokenizer: neither vocab.txt nor tokenizer.json is there");
    files.write("tokenizer/tokenizer.json", "{}");
    assert!(files.fails(params()).starts_with("tokenizer/tokenizer.json: "));

    let mut other = params();
    other["sequence"] = json!(4);
    assert_eq!(Files::new().fails(other), "params.sequence: 4 is not in 8..=512");
    let mut other = params();
    other["exact"] = json!(true);
    let error = Files::new().fails(other);
    assert!(error.starts_with("multinli: train: the counts differ\n"), "{error}");
    assert!(error.contains("  1 contradiction, negation        11158         1  <-\n"), "{error}");
}

/// The digests of all examples' tokens, as golden/tokens.py makes them.
fn digests(examples: &Examples) -> Value {
    let (mut ids, mut types, mut lengths) = (Sha256::new(), Sha256::new(), Sha256::new());
    for i in 0..examples.n() {
        let tokens = examples.tokens(i);
        tokens.ids.iter().for_each(|id| ids.update(id.to_le_bytes()));
        types.update(tokens.types);
        lengths.update((tokens.length as u32).to_le_bytes());
    }
    let hex = |hasher: Sha256| hasher.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>();
    json!({"ids": hex(ids), "types": hex(types), "lengths": hex(lengths)})
}

/// golden/tokens.json: from golden/tokens.py with tokenizers 0.22.2 on the same files.
#[test]
fn the_real_pairs_are_tokenised_as_by_python() {
    let Some(root) = mirror("the_real_pairs_are_tokenised_as_by_python") else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokens.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let files = root.join("datasets/nyu-mll/multi_nli");
    let whole = root.join("models/sentence-transformers/all-MiniLM-L6-v2");
    let folder = tempdir().unwrap();

    // The same words as BERT's own vocabulary file, whose digest is published.
    let tokenizer: Value = serde_json::from_slice(&fs::read(whole.join("tokenizer.json")).unwrap()).unwrap();
    let words = tokenizer["model"]["vocab"].as_object().unwrap();
    let mut words: Vec<(&str, u64)> =
        words.iter().map(|(word, id)| (word.as_str(), id.as_u64().unwrap())).collect();
    words.sort_by_key(|(_, id)| *id);
    let text: String = words.iter().map(|(word, _)| format!("{word}\n")).collect();
    let digest: String = Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3");
    let built = folder.path().join("built");
    fs::create_dir_all(&built).unwrap();
    fs::write(built.join("vocab.txt"), text).unwrap();

    for (tokenizer, sequence) in [(&whole, 128), (&built, 128), (&whole, 33), (&built, 33), (&built, 24)] {
        let params = json!({"dataset": "multinli", "variant": "mirror", "exact": false, "note": "", "sequence": sequence,
            "counts": {"train": [1326, 257, 1701, 48, 1538, 38], "validation": [568, 90, 633, 18, 629, 25],
                       "test": [815, 157, 1054, 25, 869, 24]}});
        let at = folder.path().join("prepared");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let start = Instant::now();
        pool.install(|| prepare::run(job(&at, params, &[("files", &files), ("tokenizer", tokenizer)])))
            .unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let examples = Examples::open(&at.join("out")).unwrap();
        assert_eq!((examples.n(), examples.meta().vocabulary), (9815, Some(30522)));
        assert_eq!(digests(&examples), golden[sequence.to_string()], "{sequence}");
        eprintln!("{} pairs, {sequence} tokens, two threads: {:.0} a second", examples.n(), 9815.0 / seconds);
    }
}
