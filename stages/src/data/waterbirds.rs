//! Waterbirds (Sagawa et al. 2020): birds of CUB-200-2011 in front of places of Places365. Facts only. For
//! non-commercial research and education.

use super::{Content, Field, Fit, Set, Split, SplitFiles};

/// The set as the Hub has it (grodino/waterbirds, its Parquet conversion). Groups: landbird on land, landbird on water,
/// waterbird on land, waterbird on water. Its averages are to be weighted by the training proportions.
pub const SET: Set = Set {
    name: "waterbirds",
    splits: &[
        SplitFiles {
            split: Split::Train,
            files: &["default/train/0000.parquet"],
            counts: &[3_498, 184, 56, 1_057],
            content: UNKNOWN,
        },
        SplitFiles {
            split: Split::Validation,
            files: &["default/validation/0000.parquet"],
            counts: &[467, 466, 133, 133],
            content: UNKNOWN,
        },
        SplitFiles {
            split: Split::Test,
            files: &["default/test/0000.parquet"],
            counts: &[2_255, 2_255, 642, 642],
            content: UNKNOWN,
        },
    ],
    image: "image.bytes",
    label: Field { column: "label", names: &["landbird", "waterbird"], first: 0, step: 1 },
    attribute: Some(Field { column: "place", names: &["land", "water"], first: 0, step: 1 }),
    // As the group DRO code: torchvision's Resize((256, 256)), CenterCrop(224), ImageNet's normalisation.
    fit: Fit::ResizeThenCrop(256),
    height: 224,
    width: 224,
    channels: 3,
    mean: &[0.485, 0.456, 0.406],
    std: &[0.229, 0.224, 0.225],
    shown: false,
    published_row: None,
};

const UNKNOWN: Content = Content { pixels: None, labels: None };
