//! CIFAR-10 (Krizhevsky 2009): 32x32 colour, ten classes, balanced. Facts, and the Hub's order of rows undone.

use super::{Content, Field, Fit, Set, Split, SplitFiles};

/// The set as the Hub has it (uoft-cs/cifar10). The digests are those of torchvision's arrays, rows · 32 · 32 · 3.
pub const SET: Set = Set {
    name: "cifar10",
    splits: &[
        SplitFiles {
            split: Split::Train,
            files: &["plain_text/train-00000-of-00001.parquet"],
            counts: &[5000; 10],
            content: Content { pixels: Some("17e2cb5a4119d89a4a13e02b91701bff"), labels: None },
        },
        SplitFiles {
            split: Split::Test,
            files: &["plain_text/test-00000-of-00001.parquet"],
            counts: &[1000; 10],
            content: Content { pixels: Some("6d2714505047e13831cd876923568712"), labels: None },
        },
    ],
    image: "img.bytes",
    label: Field {
        column: "label",
        names: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        first: 0,
        step: 1,
    },
    attribute: None,
    fit: Fit::Exact,
    height: 32,
    width: 32,
    channels: 3,
    mean: &[0.4914, 0.4822, 0.4465],
    std: &[0.2023, 0.1994, 0.2010],
    shown: true,
    published_row: Some(published_row),
};

/// Where a row of the Hub's training file stands in the published order, for a file of `rows` rows (five batches of
/// equal length): the Hub has the published batches in the order 4, 3, 2, 5, 1.
fn published_row(row: usize, rows: usize) -> usize {
    const BATCH_AT: [usize; 5] = [3, 2, 1, 4, 0];
    let length = rows / 5;
    if length == 0 || !rows.is_multiple_of(5) {
        return row;
    }
    BATCH_AT[row / length] * length + row % length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_batches_is_undone() {
        // Published batch 1 is at Hub rows 40000.., 2 at 20000.., 3 at 10000.., 4 at 0.., 5 at 30000...
        for (hub, published) in
            [(40_000, 0), (20_000, 10_000), (10_000, 20_000), (0, 30_000), (30_007, 40_007)]
        {
            assert_eq!(published_row(hub, 50_000), published);
        }
        let mut all: Vec<usize> = (0..50).map(|row| published_row(row, 50)).collect();
        all.sort();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
