//! CelebA (Liu et al. 2015) as a group problem (Sagawa et al. 2020): is the hair blond, and is the person labelled male.
//! Facts only. The data may not be copied, published or passed on; no picture of it may be shown.

use super::{Content, Field, Fit, Set, Split, SplitFiles};

/// The set as the Hub has it (tpremoli/CelebA-attrs): the aligned JPEG images, official splits. Groups: not blond and
/// female, not blond and male, blond and female, blond and male.
pub const SET: Set = Set {
    name: "celeba",
    splits: &[
        SplitFiles {
            split: Split::Train,
            files: &[
                "data/train-00000-of-00003.parquet",
                "data/train-00001-of-00003.parquet",
                "data/train-00002-of-00003.parquet",
            ],
            counts: &[71_629, 66_874, 22_880, 1_387],
            content: UNKNOWN,
        },
        SplitFiles {
            split: Split::Validation,
            files: &["data/validation-00000-of-00001.parquet"],
            counts: &[8_535, 8_276, 2_874, 182],
            content: UNKNOWN,
        },
        SplitFiles {
            split: Split::Test,
            files: &["data/test-00000-of-00001.parquet"],
            counts: &[9_767, 7_535, 2_480, 180],
            content: UNKNOWN,
        },
    ],
    image: "image.bytes",
    label: Field { column: "Blond_Hair", names: &["not blond", "blond"], first: -1, step: 2 },
    attribute: Some(Field { column: "Male", names: &["female", "male"], first: -1, step: 2 }),
    // As the group DRO code: torchvision's CenterCrop(178), Resize((224, 224)), ImageNet's normalisation.
    fit: Fit::CropThenResize(178),
    height: 224,
    width: 224,
    channels: 3,
    mean: &[0.485, 0.456, 0.406],
    std: &[0.229, 0.224, 0.225],
    shown: false,
    published_row: None,
};

const UNKNOWN: Content = Content { pixels: None, labels: None };
