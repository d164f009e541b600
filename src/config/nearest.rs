//! What somebody who wrote an unknown word may have meant.

/// The hint for a word that is none of `known`: the nearest one, or all when none is near.
pub fn nearest(word: &str, known: &[&str]) -> String {
    let best = known
        .iter()
        .map(|known| (distance(&word.to_lowercase(), known), known))
        .min_by_key(|(distance, _)| *distance);
    match best {
        Some((distance, best)) if distance <= best.len().div_ceil(3) => {
            format!("did you mean {best}?")
        }
        _ => format!("known are {}", known.join(", ")),
    }
}

/// How many letters must be put in, left out, replaced or swapped with their neighbour to make one
/// word of the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut table = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = usize::from(from[i - 1] != to[j - 1]);
                let mut least = (table[i - 1][j] + 1)
                    .min(table[i][j - 1] + 1)
                    .min(table[i - 1][j - 1] + changed);
                if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                    least = least.min(table[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    table[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_a_hint_and_far_ones_are_all_listed() {
        const KNOWN: [&str; 3] = ["path", "sync-interval", "wal-size"];
        for (word, hint) in [
            ("pth", "did you mean path?"),
            ("paht", "did you mean path?"),
            ("PATH", "did you mean path?"),
            ("sync_interval", "did you mean sync-interval?"),
            ("sync-intervall", "did you mean sync-interval?"),
            ("walsize", "did you mean wal-size?"),
            ("bucket", "known are path, sync-interval, wal-size"),
        ] {
            assert_eq!(nearest(word, &KNOWN), hint, "{word}");
        }
    }

    #[test]
    fn the_distance_of_two_words_counts_changed_letters() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("regoin", "region", 1),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }
}
