//! The command line of mount(8), rewritten to our own.
//!
//! For `mount -t sqlrepl` and a line of `/etc/fstab` mount(8) runs `/sbin/mount.sqlrepl SOURCE DIR
//! [-sfnvrw] [-t type] [-o options]` (mount(8), "EXTERNAL HELPERS"), which passes its words on to
//! us. Where that is not installed, `mount -t fuse.sqlrepl` runs FUSE's own `mount.fuse`, and that
//! `sqlrepl SOURCE DIR -o options`. Does no I/O.

use crate::cli::args::Cli;
use clap::CommandFactory;
use sqlrepl::error::{Error, Result};
use std::ffi::OsString;

/// Words of mount(8) and of `/etc/fstab` that change nothing for us: when and by whom it is
/// mounted, what a read-only file system of plain files has no use for, and what we do in any case.
/// `rw` is among them, since mount(8) says it whenever nobody says `ro`.
const IGNORED: [&str; 44] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "daemon",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "user",
    "users",
];

/// The same with a value, or with more behind them.
const IGNORED_STARTS: [&str; 7] = [
    "x-", "X-", "comment=", "helper=", "subtype=", "uhelper=", "user=",
];

/// What mount(8) asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Our own command line.
    pub(crate) arguments: Vec<String>,
    /// To check everything and mount nothing.
    pub(crate) is_fake: bool,
}

/// The options of a command line as they are gathered.
#[derive(Default)]
struct Words {
    lists: Vec<String>,
    is_fake: bool,
    /// Options that nobody knows are no reason to refuse.
    is_sloppy: bool,
}

/// Our own command line for one of mount(8); None for any other. The source is told from a
/// subcommand by a slash in it, or is the word `none`.
pub(crate) fn rewritten(argv: &[OsString]) -> Option<Result<Asked>> {
    let argv: Option<Vec<&str>> = argv.iter().map(|word| word.to_str()).collect();
    let argv = argv?;
    let [_, source, directory, rest @ ..] = argv.as_slice() else {
        return None;
    };
    let is_source = source.contains('/') || matches!(*source, "none" | "");
    let is_call = is_source
        && !source.starts_with('-')
        && !directory.starts_with('-')
        && rest.iter().any(|word| word.starts_with("-o"));
    is_call.then(|| asked(source, directory, rest))
}

fn asked(source: &str, directory: &str, rest: &[&str]) -> Result<Asked> {
    let words = gather(rest)?;
    let mut options = Vec::new();
    for option in words.lists.iter().flat_map(|list| split(list)) {
        match translated(&option) {
            Err(_) if words.is_sloppy => {}
            Err(error) => return Err(error),
            Ok(translated) => options.extend(translated),
        }
    }
    let mut arguments: Vec<String> = ["sqlrepl", "mount", "--daemon"].map(str::to_owned).into();
    // As it is written there, so that `mount -a` finds it mounted.
    let source_is_named = options.iter().any(|option| option.starts_with("--fsname="));
    if !source_is_named {
        arguments.push(format!("--fsname={source}"));
    }
    let is_config = source.ends_with(".toml");
    if is_config {
        arguments.push(format!("--config={source}"));
    }
    arguments.extend(options);
    arguments.push("--".to_owned());
    if !is_config && !matches!(source, "none" | "") {
        arguments.push(source.to_owned());
    }
    arguments.push(directory.to_owned());
    Ok(Asked {
        arguments,
        is_fake: words.is_fake,
    })
}

/// The flags of a helper, and the lists behind its `-o`.
fn gather(rest: &[&str]) -> Result<Words> {
    let mut words = Words::default();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let unknown = || Error::invalid(format!("mount(8) says {word:?}, which sqlrepl cannot"));
        let mut flags = word.strip_prefix('-').ok_or_else(unknown)?.chars();
        while let Some(flag) = flags.next() {
            match flag {
                'f' => words.is_fake = true,
                's' => words.is_sloppy = true,
                'n' | 'v' | 'r' | 'w' => {}
                'o' | 't' => {
                    let joined = flags.as_str();
                    let value = match joined.is_empty() {
                        true => rest.next().copied().ok_or_else(unknown)?,
                        false => joined,
                    };
                    if flag == 'o' {
                        words.lists.push(value.to_owned());
                    }
                    break;
                }
                _ => return Err(unknown()),
            }
        }
    }
    Ok(words)
}

/// The options of a list, between commas that stand neither in double quotes, as libmount writes
/// them, nor behind a backslash, as libfuse does.
fn split(list: &str) -> Vec<String> {
    let mut options = Vec::new();
    let mut option = String::new();
    let mut is_quoted = false;
    let mut letters = list.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => is_quoted = !is_quoted,
            '\\' => option.extend(letters.next()),
            ',' if !is_quoted => options.push(std::mem::take(&mut option)),
            letter => option.push(letter),
        }
    }
    options.push(option);
    options.retain(|option| !option.is_empty());
    options
}

/// An option of ours for one of the list, if it is more than a word to ignore. All options of
/// `sqlrepl mount` have the name there that they have here, also with `_` for `-`.
fn translated(option: &str) -> Result<Option<String>> {
    let is_ignored =
        IGNORED.contains(&option) || IGNORED_STARTS.iter().any(|start| option.starts_with(start));
    if is_ignored {
        return Ok(None);
    }
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    if name == "remount" {
        return Err(Error::invalid(
            "sqlrepl cannot remount: unmount, and mount again with the new options",
        ));
    }
    let long = name.replace('_', "-");
    match (takes_value(&long), value) {
        (None, _) => Err(Error::invalid(format!(
            "sqlrepl mount has no option {name:?}; see sqlrepl mount --help"
        ))),
        (Some(true), None) => Err(Error::invalid(format!(
            "the mount option {name} needs a value, as in {name}=..."
        ))),
        (Some(false), Some(_)) => Err(Error::invalid(format!(
            "the mount option {name} takes no value"
        ))),
        (Some(_), Some(value)) => Ok(Some(format!("--{long}={value}"))),
        (Some(_), None) => Ok(Some(format!("--{long}"))),
    }
}

/// Whether an option of `sqlrepl mount` takes a value; None if there is no such option.
fn takes_value(long: &str) -> Option<bool> {
    let ours = Cli::command();
    let mount = ours.find_subcommand("mount")?;
    let mut options = ours.get_arguments().chain(mount.get_arguments());
    let option = options.find(|option| option.get_long() == Some(long))?;
    Some(option.get_action().takes_values())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a command line, both as words between blanks.
    #[track_caller]
    fn check(line: &str, expect: &str) {
        let argv: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let became = match rewritten(&argv) {
            None => "as it is".to_owned(),
            Some(Ok(asked)) if asked.is_fake => format!("fake {}", asked.arguments.join(" ")),
            Some(Ok(asked)) => asked.arguments.join(" "),
            Some(Err(error)) => error.to_string(),
        };
        assert_eq!(became, expect, "{line}");
    }

    #[test]
    fn a_command_of_our_own_stays_as_it_is() {
        for line in [
            "sqlrepl",
            "sqlrepl mount /backup /mnt",
            "sqlrepl restore /backup/app -o app.db",
            "sqlrepl restore -o app.db /backup/app",
            "sqlrepl restor /backup/app -o app.db",
            "sqlrepl /var/app.db /backup/app",
            "sqlrepl /backup -o ro",
            "sqlrepl /backup --allow-other -o ro",
        ] {
            check(line, "as it is");
        }
    }

    #[test]
    fn what_mount_and_fuse_say_becomes_a_mount_in_the_background() {
        for (line, expect) in [
            (
                "sqlrepl /backup /mnt -o rw",
                "sqlrepl mount --daemon --fsname=/backup -- /backup /mnt",
            ),
            (
                "sqlrepl /backup /mnt -n -v -s -o rw,noatime -t fuse.sqlrepl",
                "sqlrepl mount --daemon --fsname=/backup -- /backup /mnt",
            ),
            (
                "sqlrepl s3://b/p?region=x /mnt -o ro,noexec,nosuid,nodev,user,_netdev,nofail",
                "sqlrepl mount --daemon --fsname=s3://b/p?region=x -- s3://b/p?region=x /mnt",
            ),
            (
                "sqlrepl /backup /mnt -o allow_other,x-a=b,dev,suid",
                "sqlrepl mount --daemon --fsname=/backup --allow-other -- /backup /mnt",
            ),
            (
                "sqlrepl none /mnt -o rw,user=app,x-systemd.automount,defaults",
                "sqlrepl mount --daemon --fsname=none -- /mnt",
            ),
            (
                "sqlrepl none /mnt -o config=/etc/a.toml",
                "sqlrepl mount --daemon --fsname=none --config=/etc/a.toml -- /mnt",
            ),
            (
                "sqlrepl /etc/sqlrepl.toml /mnt -rf -o ro",
                "fake sqlrepl mount --daemon --fsname=/etc/sqlrepl.toml \
                 --config=/etc/sqlrepl.toml -- /mnt",
            ),
            (
                "sqlrepl /backup /mnt -oro,page_cache=1MiB -o fsname=a,refresh=5s,page-cache=2MiB",
                "sqlrepl mount --daemon --page-cache=1MiB --fsname=a --refresh=5s \
                 --page-cache=2MiB -- /backup /mnt",
            ),
        ] {
            check(line, expect);
        }
    }

    #[test]
    fn what_it_cannot_do_is_refused_by_name_unless_mount_is_sloppy() {
        for (options, expect) in [
            (
                "-o ro,nonsense=1",
                "sqlrepl mount has no option \"nonsense\"; see sqlrepl mount --help",
            ),
            (
                "-o help",
                "sqlrepl mount has no option \"help\"; see sqlrepl mount --help",
            ),
            (
                "-o page_cache",
                "the mount option page_cache needs a value, as in page_cache=...",
            ),
            (
                "-o allow_other=yes",
                "the mount option allow_other takes no value",
            ),
            (
                "-o remount,ro",
                "sqlrepl cannot remount: unmount, and mount again with the new options",
            ),
            ("-o ro -N 5", "mount(8) says \"-N\", which sqlrepl cannot"),
            ("-o", "mount(8) says \"-o\", which sqlrepl cannot"),
            (
                "-s -o ro,nonsense=1,gid=5",
                "sqlrepl mount --daemon --fsname=/backup --gid=5 -- /backup /mnt",
            ),
        ] {
            check(&format!("sqlrepl /backup /mnt {options}"), expect);
        }
    }

    #[test]
    fn a_comma_in_quotes_or_behind_a_backslash_divides_nothing() {
        assert_eq!(split("a,b=\"1,2\",,c"), ["a", "b=1,2", "c"]);
        assert_eq!(split("a=1\\,2\\\\,b"), ["a=1,2\\", "b"]);
        assert_eq!(split("a\\"), ["a"]);
    }

    #[test]
    fn the_words_to_ignore_are_in_order_and_none_is_an_option_of_ours_but_daemon() {
        assert!(IGNORED.is_sorted());
        let ours = |word: &&&str| takes_value(word).is_some();
        let both: Vec<_> = IGNORED.iter().filter(ours).collect();
        assert_eq!(both, [&"daemon"]);
    }
}
