//! Pairs of texts to BERT's tokens: a vocabulary file or a `tokenizer.json` -> numbers of a fixed length. Knows the
//! uncased BERT's rules; knows no data set and no model.

use std::path::Path;

use anyhow::Result;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::job::bad;

/// The words of a vocabulary that are no text.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A tokenizer for pairs, cut to a length.
pub struct Encoder {
    tokenizer: Tokenizer,
    sequence: usize,
    pad: u32,
}

/// One encoded pair.
pub struct Encoded {
    /// `sequence` numbers, padding included.
    pub ids: Vec<u32>,
    /// As many: 1 for the second text and its `[SEP]`.
    pub types: Vec<u8>,
    /// How many are no padding.
    pub length: u32,
}

impl Encoder {
    /// Opens `vocab.txt` of a folder, or else its `tokenizer.json`, for `sequence` tokens a pair.
    ///
    /// Errors: `BadInput` where neither is there, or it has not the five special words.
    pub fn open(folder: &Path, sequence: usize) -> Result<Self> {
        let (vocabulary, whole) = (folder.join("vocab.txt"), folder.join("tokenizer.json"));
        let (path, tokenizer) = if vocabulary.is_file() {
            let built = from_vocabulary(&vocabulary);
            (vocabulary, built)
        } else if whole.is_file() {
            let built = Tokenizer::from_file(&whole).map_err(|e| e.to_string());
            (whole, built)
        } else {
            return Err(bad(format!("{}: neither vocab.txt nor tokenizer.json is there", folder.display())));
        };
        let fail = |what: String| bad(format!("{}: {what}", path.display()));
        let mut tokenizer = tokenizer.map_err(fail)?;
        for word in SPECIAL {
            if tokenizer.token_to_id(word).is_none() {
                return Err(fail(format!("no word {word}: not the vocabulary of a BERT")));
            }
        }
        // A tokenizer.json may bring a padding and a truncation of its own.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: sequence,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
                direction: TruncationDirection::Right,
            }))
            .map_err(|e| fail(e.to_string()))?;
        let pad = tokenizer.token_to_id("[PAD]").unwrap_or(0);
        Ok(Self { tokenizer, sequence, pad })
    }

    /// How many words it knows.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// `[CLS] first [SEP] second [SEP]`, the longer text cut from its end until it fits, padded to the length.
    pub fn encode(&self, first: &str, second: &str) -> Result<Encoded> {
        let encoding = self.tokenizer.encode_fast((first, second), true).map_err(|e| bad(e.to_string()))?;
        let length = encoding.len() as u32;
        let mut ids = encoding.get_ids().to_vec();
        let mut types: Vec<u8> = encoding.get_type_ids().iter().map(|&t| t as u8).collect();
        ids.resize(self.sequence, self.pad);
        types.resize(self.sequence, 0);
        Ok(Encoded { ids, types, length })
    }
}

/// The uncased BERT's tokenizer: clean text, blanks around Chinese characters, lower case without accents, cut at blanks
/// and punctuation, then into the longest known pieces.
fn from_vocabulary(path: &Path) -> Result<Tokenizer, String> {
    let text = path.to_str().ok_or("the path is not UTF-8")?;
    let model = WordPiece::from_file(text).unk_token("[UNK]".into()).build().map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    let id = |word: &str| {
        tokenizer.token_to_id(word).map(|id| (word.to_string(), id)).ok_or(format!("no word {word}"))
    };
    let ends = BertProcessing::new(id("[SEP]")?, id("[CLS]")?);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true)));
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_post_processor(Some(ends));
    let special: Vec<AddedToken> = SPECIAL.iter().map(|word| AddedToken::from(*word, true)).collect();
    tokenizer.add_special_tokens(&special);
    Ok(tokenizer)
}
