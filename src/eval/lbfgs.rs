//! Minimises a smooth function of many variables by L-BFGS.
//!
//! Source: Nocedal and Wright, "Numerical Optimization" (2nd edition), algorithms 7.4 and 7.5; the
//! step is found by bisection under the weak Wolfe conditions.

use crate::error::Result;
use std::collections::VecDeque;

/// Steps whose curvature is remembered.
const MEMORY: usize = 10;
/// Of the slope at the start, how much a step must lower the function (Armijo).
const DECREASE: f64 = 1e-4;
/// Of the slope at the start, how much may be left behind a step (curvature).
const CURVATURE: f64 = 0.9;
/// Of a value, what its rounding may change.
const ROUNDING: f64 = 8.0 * f64::EPSILON;
/// Trials for a step's length; each halves an interval, so these reach the last bit of a double.
const TRIALS: usize = 60;

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// At a gradient none of whose components is larger.
    pub gradient: f64,
    /// After so many steps.
    pub iterations: usize,
}

/// Where it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// Largest component of the gradient there.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
}

/// A step taken and the change of the gradient along it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// `1 / (step · change)`.
    rho: f64,
}

/// Minimises `function`, which gives its value at a point and writes its gradient there, from `x`
/// on. Ends early where no step lowers the function any more in double precision.
///
/// # Errors
/// Those of `function`.
pub fn minimize(
    mut x: Vec<f64>,
    stop: Stop,
    mut function: impl FnMut(&[f64], &mut [f64]) -> Result<f64>,
) -> Result<Minimum> {
    let mut gradient = vec![0.0; x.len()];
    let mut value = function(&x, &mut gradient)?;
    let mut history: VecDeque<Pair> = VecDeque::with_capacity(MEMORY + 1);
    let (mut trial, mut trial_gradient) = (x.clone(), gradient.clone());
    let mut iterations = 0;
    while iterations < stop.iterations && largest(&gradient) > stop.gradient {
        let direction = direction(&gradient, &history);
        let slope = dot(&gradient, &direction);
        let first = if history.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let (mut low, mut high, mut length) = (0.0, f64::INFINITY, first.min(1.0));
        let mut found = None;
        for _ in 0..TRIALS {
            let moved = x.iter().zip(&direction).map(|(x, d)| x + length * d);
            trial.iter_mut().zip(moved).for_each(|(to, x)| *to = x);
            let reached = function(&trial, &mut trial_gradient)?;
            // Near the minimum a step changes the value by less than its rounding, and only slopes
            // tell. Where not a number comes back, the step was too long.
            let rounding = ROUNDING * value.abs();
            if reached <= value + DECREASE * length * slope + rounding {
                if dot(&trial_gradient, &direction) >= CURVATURE * slope {
                    found = Some(reached);
                    break;
                }
                low = length;
            } else {
                high = length;
            }
            length = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * low };
        }
        let Some(reached) = found else { break };
        let difference = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        let (step, change): (Vec<f64>, Vec<f64>) =
            (difference(&trial, &x), difference(&trial_gradient, &gradient));
        let rho = 1.0 / dot(&step, &change);
        if rho.is_finite() {
            history.push_back(Pair { step, change, rho });
            history.drain(..history.len().saturating_sub(MEMORY));
        }
        std::mem::swap(&mut x, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
        (value, iterations) = (reached, iterations + 1);
    }
    let gradient = largest(&gradient);
    Ok(Minimum { x, value, gradient, iterations })
}

/// Minus the gradient, times the inverse curvature that the last steps showed.
fn direction(gradient: &[f64], history: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut weights = Vec::with_capacity(history.len());
    for pair in history.iter().rev() {
        let weight = pair.rho * dot(&pair.step, &q);
        add(&mut q, -weight, &pair.change);
        weights.push(weight);
    }
    if let Some(last) = history.back() {
        let scale = 1.0 / (last.rho * dot(&last.change, &last.change));
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (pair, weight) in history.iter().zip(weights.into_iter().rev()) {
        let back = pair.rho * dot(&pair.change, &q);
        add(&mut q, weight - back, &pair.step);
    }
    q
}

fn add(to: &mut [f64], scale: f64, other: &[f64]) {
    to.iter_mut().zip(other).for_each(|(to, other)| *to += scale * other);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Stop = Stop { gradient: 1e-9, iterations: 200 };

    /// Rosenbrock's valley in ten dimensions: its one minimum nearby is 0, at ones.
    #[test]
    fn rosenbrocks_valley() {
        let valley = |x: &[f64], gradient: &mut [f64]| {
            gradient.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (a, b) = (x[i + 1] - x[i] * x[i], 1.0 - x[i]);
                value += 100.0 * a * a + b * b;
                gradient[i] -= 400.0 * a * x[i] + 2.0 * b;
                gradient[i + 1] += 200.0 * a;
            }
            Ok(value)
        };
        let found = minimize(vec![0.5; 10], STOP, valley).unwrap();
        assert!(found.gradient <= 1e-9 && found.iterations < 100, "{found:?}");
        // The least curvature at the minimum is above 0.1: x is within ten times the gradient.
        assert!(found.x.iter().all(|x| (x - 1.0).abs() < 1e-7), "{found:?}");
    }

    /// `Σ i (x_i - i)²`: exact to the rounding of the function.
    #[test]
    fn a_bowl_and_its_ends() {
        let bowl = |x: &[f64], gradient: &mut [f64]| {
            let parts = x.iter().zip(gradient).enumerate().map(|(i, (x, g))| {
                let (weight, off) = (1.0 + i as f64, x - i as f64);
                *g = 2.0 * weight * off;
                weight * off * off
            });
            Ok(parts.sum())
        };
        let found = minimize(vec![0.0; 20], STOP, bowl).unwrap();
        assert!(found.x.iter().enumerate().all(|(i, x)| (x - i as f64).abs() < 1e-9), "{found:?}");
        let few = Stop { iterations: 2, ..STOP };
        assert_eq!(minimize(vec![0.0; 20], few, bowl).unwrap().iterations, 2);
        let there = minimize(found.x.clone(), STOP, bowl).unwrap();
        assert_eq!((there.iterations, there.x), (0, found.x));
    }

    /// The product that `direction` makes without a matrix, by the matrices of the definition:
    /// `H ← (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ`.
    #[test]
    fn the_direction_is_that_of_the_matrices() {
        const N: usize = 6;
        let mut history = VecDeque::new();
        for n in 1..=4 {
            let step: Vec<f64> = (0..6).map(|i| f64::from((n * (i + 2)) % 7 - 3)).collect();
            let change: Vec<f64> =
                step.iter().zip(1..).map(|(s, i)| s * f64::from(i + n)).collect();
            let rho = 1.0 / dot(&step, &change);
            history.push_back(Pair { step, change, rho });
        }
        let last = history.back().unwrap();
        let scale = 1.0 / (last.rho * dot(&last.change, &last.change));
        let unit = |i: usize, j: usize| f64::from(u8::from(i == j));
        let mut h = [[0.0; N]; N];
        (0..N).for_each(|i| h[i][i] = scale);
        for Pair { step, change, rho } in &history {
            let left = |i: usize, j: usize| unit(i, j) - rho * step[i] * change[j];
            let entry = |i: usize, j: usize| -> f64 {
                let row = |k: usize| (0..N).map(|l| h[k][l] * left(j, l)).sum::<f64>();
                (0..N).map(|k| left(i, k) * row(k)).sum::<f64>() + rho * step[i] * step[j]
            };
            h = std::array::from_fn(|i| std::array::from_fn(|j| entry(i, j)));
        }
        let gradient = [1.0, -2.0, 0.5, 3.0, -1.0, 2.0];
        let expected = h.map(|row| -dot(&row, &gradient));
        let got = direction(&gradient, &history);
        // Some hundred roundings of numbers below 100.
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-11), "{got:?}");
    }

    /// Steps that leave the domain give no number; the search comes back.
    #[test]
    fn a_wall_of_nan_is_not_walked_through() {
        let barrier = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 1.0 - 1.0 / x[0];
            Ok(x[0] - x[0].ln())
        };
        let found = minimize(vec![30.0], STOP, barrier).unwrap();
        assert!((found.x[0] - 1.0).abs() < 1e-8, "{found:?}");
    }
}
