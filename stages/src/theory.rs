//! Closed forms of theorem 3's layer-peeled problems under label shift: K classes, half of them with R times the
//! examples. Knows no network.

/// Cosines among majority and among minority classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosines {
    pub majority: f64,
    pub minority: f64,
}

/// The cosine between any two of k vectors of a simplex equiangular tight frame: -1/(k - 1); k >= 2.
pub fn simplex(k: u32) -> f64 {
    -1.0 / (f64::from(k) - 1.0)
}

/// Classifier rows under IT(W) with lambda_k = sqrt(n_k), at ratio R >= 1.
pub fn it_classifier(k: u32, ratio: f64) -> Cosines {
    let half = f64::from(k) / 2.0;
    Cosines { majority: -1.0 / (half * ratio + half - 1.0), minority: -ratio / ((half - 1.0) * ratio + half) }
}

/// The angle of a cosine, in degrees.
pub fn degrees(cosine: f64) -> f64 {
    libm::acos(cosine.clamp(-1.0, 1.0)).to_degrees()
}

#[cfg(test)]
mod tests {
    use super::*;

    // python: [math.degrees(math.acos(x)) for x in (-1/9, -1/4, 1/9, 1/4)]
    #[test]
    fn the_papers_lines() {
        for (cosine, angle) in [
            (simplex(10), 96.37937021),
            (simplex(5), 104.47751219),
            (-simplex(10), 83.62062979),
            (-simplex(5), 75.52248781),
        ] {
            assert!((degrees(cosine) - angle).abs() < 1e-7, "{cosine}: {}", degrees(cosine));
        }
    }

    #[test]
    fn the_closed_forms_end_in_the_lines() {
        // R = 1: balanced, one simplex of all classes.
        let balanced = it_classifier(10, 1.0);
        assert!(
            (balanced.majority - simplex(10)).abs() < 1e-15
                && (balanced.minority - simplex(10)).abs() < 1e-15
        );
        // By hand at R = 100: -1/504 and -100/405.
        assert_eq!(it_classifier(10, 100.0), Cosines { majority: -1.0 / 504.0, minority: -100.0 / 405.0 });
        let far = it_classifier(10, 1e12);
        assert!((far.minority - simplex(5)).abs() < 1e-11 && far.majority.abs() < 1e-11);
    }
}
