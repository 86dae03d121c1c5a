//! Does something grow? Asked of many samples, not of the first and the last one.

/// The line of least squares through samples (hours, value).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Samples.
    pub count: usize,
    /// Between the first and the last one.
    pub hours: f64,
    /// Growth in an hour.
    pub per_hour: f64,
    /// The true one is that much less or more, but for one in five hundred.
    pub error: f64,
    /// How far all of the last third lie above all of the first third.
    pub apart: f64,
}

impl Slope {
    /// Of three samples at least, not all at the same time.
    #[must_use]
    pub fn of(samples: &[(f64, f64)]) -> Slope {
        let count = samples.len();
        assert!(count > 2, "{count} samples say nothing");
        let number = count as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / number;
        let (x, y) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            samples.iter().map(|(a, b)| of(a - x, b - y)).sum()
        };
        let spread = sum(&|dx, _| dx * dx);
        let per_hour = sum(&|dx, dy| dx * dy) / spread;
        let rest = sum(&|dx, dy| (dy - per_hour * dx).powi(2));
        let freedom = number - 2.0;
        // Student's t for 99.9 % on one side, from 8 degrees of freedom on within 3 % and never below:
        // 4.50 for 8, 3.55 for 20, 3.09 for many.
        let t = 3.1 + 12.0 / freedom;
        let third = count / 3;
        let values = |part: &[(f64, f64)]| part.iter().map(|sample| sample.1).collect::<Vec<f64>>();
        let most = values(&samples[..third.max(1)])
            .into_iter()
            .fold(f64::MIN, f64::max);
        let least = values(&samples[count - third.max(1)..])
            .into_iter()
            .fold(f64::MAX, f64::min);
        Slope {
            count,
            hours: samples[count - 1].0 - samples[0].0,
            per_hour,
            error: t * (rest / freedom / spread).sqrt(),
            apart: least - most,
        }
    }

    /// It grows, beyond doubt, by more than `most` over the time that was looked at. Without such an amount a
    /// short run would be judged by a page or two that the allocator took late. What grows in few great steps,
    /// as descriptors that a rare fault leaks, has no certain slope in a short run, but its thirds lie apart.
    #[must_use]
    pub fn grows(&self, most: f64) -> bool {
        (self.per_hour - self.error) * self.hours > most || self.apart > most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: u32, of: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let noise = |turn: u32| f64::from(turn * 7919 % 101) - 50.0;
        (0..count)
            .map(|turn| (f64::from(turn) / 60.0, of(f64::from(turn)) + noise(turn)))
            .collect()
    }

    #[test]
    fn a_leak_is_seen_through_noise_and_noise_is_none() {
        let leak = Slope::of(&samples(60, |turn| 4000.0 + 10.0 * turn));
        assert!((leak.per_hour - 600.0).abs() < leak.error, "{leak:?}");
        assert!(leak.grows(128.0), "{leak:?}");
        assert!(!leak.grows(1000.0), "{leak:?}");
        let none = Slope::of(&samples(60, |_| 4000.0));
        assert!(!none.grows(0.0) && none.per_hour.abs() < none.error);
        // Taken once, and kept.
        let step = Slope::of(&samples(60, |turn| if turn > 30.0 { 100.0 } else { 0.0 }));
        assert!(!step.grows(128.0), "{step:?}");
        // Two for each rotation, which there are few of.
        let counts = [
            32.0, 32.0, 36.0, 36.0, 36.0, 36.0, 36.0, 42.0, 42.0, 42.0, 42.0,
        ];
        let few: Vec<(f64, f64)> = (0u32..).map(f64::from).zip(counts).collect();
        assert!(Slope::of(&few).grows(1.0));
        let same = Slope::of(&[(0.0, 7.0), (1.0, 7.0), (2.0, 7.0)]);
        assert!(!same.grows(0.0));
        assert_eq!((same.per_hour, same.error), (0.0, 0.0));
    }
}
