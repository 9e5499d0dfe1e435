//! Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 28x28 grey, ten kinds of clothes, balanced. Facts only.

use super::{Content, Field, Fit, Set, Split, SplitFiles};

/// The set as the Hub has it (zalando-datasets/fashion_mnist). The digests are those of the published idx files: of the
/// pixels without the header, and of the whole label file.
pub const SET: Set = Set {
    name: "fashion-mnist",
    splits: &[
        SplitFiles {
            split: Split::Train,
            files: &["fashion_mnist/train-00000-of-00001.parquet"],
            counts: &[6000; 10],
            content: Content {
                pixels: Some("f209073e486d5113ebe2cc431d4df862"),
                labels: Some("9018921c3c673c538a1fc5bad174d6f9"),
            },
        },
        SplitFiles {
            split: Split::Test,
            files: &["fashion_mnist/test-00000-of-00001.parquet"],
            counts: &[1000; 10],
            content: Content {
                pixels: Some("b7656a891b218fc13e45205c48a92cae"),
                labels: Some("15d484375f8d13e6eb1aabb0c3f46965"),
            },
        },
    ],
    image: "image.bytes",
    label: Field {
        column: "label",
        names: &[
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ],
        first: 0,
        step: 1,
    },
    attribute: None,
    fit: Fit::Exact,
    height: 28,
    width: 28,
    channels: 1,
    mean: &[0.2860],
    std: &[0.3530],
    shown: true,
    published_row: None,
};
