//! `${NAME}` in values: what the environment says in its place.

use crate::error::{Error, Result};

/// What a variable of the environment holds.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Puts the environment's values for `${NAME}`, and a dollar for `$$`.
///
/// # Errors
/// `Invalid`, which names the variable and never shows a value.
pub(crate) fn expand(text: &str, environment: Lookup<'_>) -> Result<String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(behind) = after.strip_prefix('$') {
            expanded.push('$');
            rest = behind;
            continue;
        }
        let name = after
            .strip_prefix('{')
            .and_then(|from| from.split_once('}'));
        let Some((name, behind)) = name.filter(|(name, _)| is_name(name)) else {
            return Err(Error::invalid(
                "a $ begins ${NAME}, which the environment fills in; write $$ for a dollar",
            ));
        };
        expanded.push_str(&environment(name).ok_or_else(|| {
            Error::invalid(format!(
                "${{{name}}} is not set in the environment, or is no text"
            ))
        })?);
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The text that expands to this one.
pub(crate) fn escape(text: &str) -> String {
    text.replace('$', "$$")
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "HOME_2" => Some("/h".to_owned()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("${HOME_2}$".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn names_in_braces_are_filled_in_once_and_two_dollars_are_one() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${HOME_2}", "/h"),
            ("a${HOME_2}b${EMPTY}c${HOME_2}", "a/hbc/h"),
            ("$$", "$"),
            ("$${HOME_2}", "${HOME_2}"),
            ("$$$$x", "$$x"),
            ("${DOLLAR}", "${HOME_2}$"),
        ] {
            assert_eq!(expand(text, &environment).unwrap(), expected, "{text}");
            assert_eq!(expand(&escape(text), &environment).unwrap(), text);
        }
    }

    #[test]
    fn a_variable_that_is_not_set_and_a_dollar_alone_are_errors() {
        assert_eq!(
            expand("a${NO_SUCH}b", &environment)
                .unwrap_err()
                .to_string(),
            "${NO_SUCH} is not set in the environment, or is no text"
        );
        for text in [
            "$", "hunter2$", "$HOME_2", "${HOME_2", "${}", "${2}", "${a b}",
        ] {
            assert_eq!(
                expand(text, &environment).unwrap_err().to_string(),
                "a $ begins ${NAME}, which the environment fills in; write $$ for a dollar",
                "{text}"
            );
        }
    }
}
