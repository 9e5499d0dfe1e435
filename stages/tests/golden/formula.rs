//! The numbers that golden models are filled with: the same formula as in models.py. Knows names and shapes alone.

/// As `uniform` in models.py.
pub fn uniform(name: &str, n: usize) -> Vec<f64> {
    let digest =
        name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |d, b| (d ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=n as u64)
        .map(|i| {
            let mut z = digest.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f64 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// As `fill` in models.py.
pub fn fill(name: &str, shape: &[usize], shift: f64) -> Vec<f32> {
    let fan: usize = shape.iter().skip(1).product();
    let value = |u: f64| match () {
        () if name.ends_with("running_var") => 1.0 + 0.5 * u,
        () if name.ends_with("running_mean") => 0.1 * u,
        () if name.contains("embeddings") && shape.len() == 2 => u,
        () if name.starts_with("bert.") && shape.len() == 2 => u * (1.5 / fan as f64).sqrt(),
        () if shape.len() >= 2 => u * (6.0 / fan as f64).sqrt(),
        () if name.ends_with("bias") && (name.contains("bn") || name.contains("downsample.1")) => {
            0.1 * u + shift
        }
        () if name.ends_with("bias") => 0.1 * u,
        () if name.ends_with("bn3.weight") => 0.25 + 0.05 * u,
        () => 1.0 + 0.2 * u,
    };
    uniform(name, shape.iter().product()).into_iter().map(|u| value(u) as f32).collect()
}

/// As `sentences` in models.py: words, segments and mask of each sentence, one after the other.
pub fn sentences(n: usize, length: usize, vocabulary: usize) -> Vec<u32> {
    let words = uniform("words", n * length);
    let mut tokens: Vec<u32> = vec![];
    for i in 0..n {
        let row = &words[i * length..(i + 1) * length];
        tokens.extend(row.iter().map(|u| ((u + 1.0) / 2.0 * vocabulary as f64) as u32));
        tokens.extend((0..length).map(|t| u32::from(t >= length / 2)));
        tokens.extend((0..length).map(|t| u32::from(t < length - 2 * i)));
    }
    tokens
}
