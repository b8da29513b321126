//! `wxrelay init` sets up the systemd service in one step, asks on a terminal, and ignores no flag.
//!
//! `--root` stands for the machine: nothing outside a temporary folder is written.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::support::command::{Finished, run, wxrelay};
use crate::support::eventually;
use crate::support::program::is_missing;
use crate::top::{Screen, ShownProgram};

const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const AUTHING: [&str; 6] =
    ["--provider", "authing", "--identifier", "my-connection", "--user-pool-id", "0123456789abcdef"];
const BAMBOOCLOUD: [&str; 6] =
    ["--provider", "bamboocloud", "--domain", "tenant.example.com", "--idp-id", "0123456789abcdef"];
/// An arbitrary user, as the service's.
const OTHER_USER: u32 = 65_534;

#[tokio::test]
async fn what_is_written_for_systemd_starts_as_the_user_of_the_service() {
    for (flags, secrets) in [
        (&[][..], &["encoding_aes_key", "token"][..]),
        (&["--mode", "plaintext"], &["token"]),
        (&AUTHING, &["encoding_aes_key", "token", "user_pool_id"]),
        (&BAMBOOCLOUD, &["encoding_aes_key", "idp_id", "token"]),
    ] {
        let machine = Machine::new();
        if flags == AUTHING {
            machine.write("etc/wxrelay/env", "");
            fs::set_permissions(machine.path("etc/wxrelay"), Permissions::from_mode(0o700)).expect("they can be set");
        }
        let printed = machine.init(flags).await;
        assert_eq!(printed.code, Some(0), "{flags:?}: {printed:?}");
        assert_eq!(machine.mode("etc/wxrelay"), 0o755, "{flags:?}");
        assert_eq!(machine.mode("etc/wxrelay/config.toml"), 0o644, "{flags:?}");
        let credentials = machine.credentials();
        assert_eq!(credentials.keys().map(String::as_str).collect::<Vec<_>>(), secrets, "{flags:?}");
        let config = machine.read("etc/wxrelay/config.toml");
        for (name, path) in &credentials {
            assert_eq!(machine.mode(path), 0o600, "{path}");
            let secret = machine.read(path);
            assert!(secret.trim().len() > 10 && !config.contains(secret.trim()), "{name} is in {config}");
            assert!(!printed.stdout.contains(secret.trim()), "without a terminal no secret is shown: {name}");
        }
        let checked = machine.check_as_service(&credentials).await;
        assert!(checked.code == Some(0) && !checked.stderr.contains("holds a secret"), "{flags:?}: {checked:?}");
        // By hand, beside the configuration.
        let checked = run(machine.check()).await;
        assert!(checked.code == Some(0) && !checked.stderr.contains("holds a secret"), "{flags:?}: {checked:?}");
        // What systemd would not hand over is missed.
        let (first, others) = (secrets[0].to_owned(), &mut credentials.clone());
        others.remove(&first);
        fs::remove_file(machine.path(&credentials[&first])).expect("it was written");
        let checked = machine.check_as_service(others).await;
        assert_eq!(checked.code, Some(78), "{flags:?} without {first}: {}", checked.stdout);
    }
}

#[tokio::test]
async fn systemd_takes_the_unit_with_what_init_writes_beside_it() {
    if is_missing("systemd-analyze") {
        return;
    }
    let machine = Machine::new();
    assert_eq!(machine.init(&["--mode", "plaintext"]).await.code, Some(0));
    let unit = machine.path("etc/systemd/system/wxrelay.service");
    // Not installed where systemd looks.
    let text = fs::read_to_string(&unit).expect("it was written");
    let text = text.replace("ExecStart=wxrelay", concat!("ExecStart=", env!("CARGO_BIN_EXE_wxrelay")));
    fs::write(&unit, text).expect("the unit can be written");
    let said = verify(&unit).await;
    // For a systemd before 253 the drop-in comes after a line that it does not know.
    let ours = said.lines().filter(|line| line.contains("wxrelay") && !line.contains("notify-reload"));
    assert_eq!(ours.count(), 0, "{said}");
    // The drop-ins are read at all.
    let drop_in = machine.path("etc/systemd/system/wxrelay.service.d/credentials.conf");
    fs::write(&drop_in, machine.read("etc/systemd/system/wxrelay.service.d/credentials.conf") + "Nonsense=1\n")
        .expect("it can be written");
    let said = verify(&unit).await;
    assert!(said.contains("credentials.conf") && said.contains("Nonsense"), "{said}");
}

#[tokio::test]
async fn three_commands_are_left_and_a_fourth_where_the_program_is_not_installed() {
    let machine = Machine::new();
    let printed = machine.init(&[]).await.stdout;
    let commands = |printed: &str| {
        let lines = printed.lines().map(str::trim);
        let is_command = |line: &&str| ["install ", "systemctl ", "wxrelay "].iter().any(|word| line.starts_with(word));
        lines.filter(is_command).map(str::to_owned).collect::<Vec<_>>()
    };
    let three = [
        "systemctl daemon-reload",
        "systemctl enable --now wxrelay",
        "wxrelay simulate -c /etc/wxrelay/config.toml verify",
    ];
    let install = format!("install -m 755 {} /usr/local/bin/wxrelay", env!("CARGO_BIN_EXE_wxrelay"));
    assert_eq!(commands(&printed)[0], install, "{printed}");
    assert_eq!(commands(&printed)[1..], three, "{printed}");

    let machine = Machine::new();
    machine.write("usr/local/bin/wxrelay", "");
    let printed = machine.init(&[]).await.stdout;
    assert_eq!(commands(&printed), three, "{printed}");
}

#[tokio::test]
async fn nothing_is_overwritten_and_the_units_of_a_package_or_an_operator_stay() {
    let units = "etc/systemd/system";
    let machine = Machine::new();
    assert_eq!(machine.init(&[]).await.code, Some(0));
    let written = machine.files();
    let again = machine.init(&[]).await;
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.stderr.contains("config.toml exists already") && again.stderr.contains("\nfix: "), "{again:?}");
    assert_eq!(machine.files(), written);

    let machine = Machine::new();
    machine.write(&format!("{units}/wxrelay.service"), "mine");
    let printed = machine.init(&[]).await;
    assert!(printed.code == Some(0) && printed.stdout.contains("wxrelay.service was there already"), "{printed:?}");
    assert_eq!(machine.read(&format!("{units}/wxrelay.service")), "mine");

    let machine = Machine::new();
    machine.write("usr/lib/systemd/system/wxrelay.service", "of the package");
    assert_eq!(machine.init(&[]).await.code, Some(0));
    let names: Vec<_> = machine.files().into_keys().filter(|name| name.starts_with(units)).collect();
    assert_eq!(names, [format!("{units}/wxrelay.service.d/credentials.conf")]);

    // A failure before the first file leaves none.
    let machine = Machine::new();
    machine.write(&format!("{units}/wxrelay.service.d/credentials.conf"), "mine");
    let before = machine.files();
    assert_eq!(machine.init(&[]).await.code, Some(1));
    assert_eq!(machine.files(), before);
}

#[tokio::test]
async fn a_flag_without_effect_is_an_error() {
    for (flags, named) in [
        (&["--systemd", "--dir", "x"][..], "--dir"),
        (&["--systemd", "--data", "x"], "--data"),
        (&["--root", "x"], "--systemd"),
        (&["--mode", "plaintext", "--key", AES_KEY], "--key"),
        (&["--user-pool-id", "p"], "--user-pool-id"),
        (&["--provider", "bamboocloud", "--domain", "d", "--idp-id", "1", "--identifier", "i"], "--identifier"),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut init = wxrelay(["init"]);
        init.args(flags).current_dir(folder.path());
        let refused = run(init).await;
        assert!(refused.code == Some(2) && refused.stderr.contains(named), "{flags:?}: {refused:?}");
        assert_eq!(fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "{flags:?}");
    }
}

#[tokio::test]
async fn on_a_terminal_it_asks_for_what_no_flag_says() {
    let (machine, screen) = (Machine::new(), Screen::open());
    let asking = screen.run(machine.command(&[]));
    let key = format!("{AES_KEY}\n");
    for (question, answer) in [
        ("AppID of the account", "wx0123456789abcdef\n"),
        ("2 Authing", "authing\n"),
        // Not one of the numbers: asked again.
        ("expected one of 1, 2, 3, 4", "2\n"),
        ("Identifier of its connection", "\n"),
        ("expected letters", "my-connection\n"),
        ("ID of the user pool", "0123456789abcdef\n"),
        ("Mode in WeChat's console", "compatible\n"),
        ("Token of today", "a b\n"),
        ("expected 3 to 32 letters", "TokenOfToday\n"),
        ("EncodingAESKey of today", &key),
    ] {
        screen.shows(question).await;
        screen.press(answer);
    }
    assert_eq!(ended(asking).await, Some(0), "{}", screen.text());
    screen.shows("systemctl enable --now wxrelay").await;
    assert_eq!(machine.read("etc/wxrelay/token"), "TokenOfToday\n");
    assert_eq!(machine.read("etc/wxrelay/encoding_aes_key"), key);
    let config = machine.read("etc/wxrelay/config.toml");
    for line in ["app_id = \"wx0123456789abcdef\"", "mode = \"compatible\"", "identifier = \"my-connection\""] {
        assert!(config.lines().any(|written| written == line), "no `{line}` in {config}");
    }
}

#[tokio::test]
async fn a_flag_of_the_account_or_no_terminal_means_no_question() {
    let (machine, screen) = (Machine::new(), Screen::open());
    let init = screen.run(machine.command(&["--mode", "secure"]));
    assert_eq!(ended(init).await, Some(0), "{}", screen.text());
    assert!(!screen.text().contains("Enter takes"), "{}", screen.text());
    // The questions' end without an answer writes nothing.
    let (machine, screen) = (Machine::new(), Screen::open());
    let asking = screen.run(machine.command(&[]));
    screen.shows("AppID of the account").await;
    screen.press("\x04");
    assert_eq!(ended(asking).await, Some(1), "{}", screen.text());
    assert!(machine.files().is_empty(), "{:?}", machine.files());
}

/// Not a wait in a thread, which would keep a failed test from its end.
async fn ended(mut child: ShownProgram) -> Option<i32> {
    eventually("the command ends", async || child.try_wait().expect("it can be waited for")).await.code()
}

/// An empty machine for `--root`.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("its permissions can be set");
        Self { folder }
    }

    /// A umask that takes all rights from others must not keep the service out.
    fn command(&self, flags: &[&str]) -> Command {
        let mut init = wxrelay(["init", "--systemd", "--root"]);
        init.arg(self.folder.path()).args(flags);
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(init.get_program()).args(init.get_args());
        shell.env_remove("SUDO_UID").stdin(std::process::Stdio::null());
        shell
    }

    async fn init(&self, flags: &[&str]) -> Finished {
        run(self.command(flags)).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name.trim_start_matches('/'))
    }

    fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("the folder can be made");
        fs::write(path, text).expect("the file can be written");
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("it was written").permissions().mode() & 0o7777
    }

    /// Every file with its text.
    fn files(&self) -> BTreeMap<String, String> {
        let mut folders = vec![self.folder.path().to_owned()];
        let mut found = BTreeMap::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder can be read") {
                let path = entry.expect("an entry can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(self.folder.path()).expect("it is below").display().to_string();
                    found.insert(name, fs::read_to_string(path).expect("a file can be read"));
                }
            }
        }
        found
    }

    /// The credentials as systemd counts them: an empty line ends the list so far, and drop-ins come after the unit.
    fn credentials(&self) -> BTreeMap<String, String> {
        let units = "etc/systemd/system";
        let drop_ins =
            self.files().into_iter().filter(|(name, _)| name.starts_with(&format!("{units}/wxrelay.service.d/")));
        let texts = [self.read(&format!("{units}/wxrelay.service"))].into_iter().chain(drop_ins.map(|(_, text)| text));
        let mut credentials = BTreeMap::new();
        for text in texts {
            for value in text.lines().filter_map(|line| line.strip_prefix("LoadCredential=")) {
                match value.split_once(':') {
                    Some((name, path)) => drop(credentials.insert(name.to_owned(), path.to_owned())),
                    None => credentials.clear(),
                }
            }
        }
        credentials
    }

    fn check(&self) -> Command {
        let mut check = wxrelay(["check", "-c"]);
        check.arg(self.path("etc/wxrelay/config.toml")).env("WXRELAY__QUEUE__PATH", self.path("store"));
        check
    }

    /// Checks the configuration as the service would read it: as another user, with copies of the credentials.
    async fn check_as_service(&self, credentials: &BTreeMap<String, String>) -> Finished {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut check = self.check();
        check.env("CREDENTIALS_DIRECTORY", folder.path());
        let is_root = geteuid().is_root();
        let mode = if is_root { 0o444 } else { 0o400 };
        for (name, path) in credentials {
            let copy = folder.path().join(name);
            fs::copy(self.path(path), &copy).expect("the credential is where the unit says");
            fs::set_permissions(copy, Permissions::from_mode(mode)).expect("its permissions can be set");
        }
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("its permissions can be set");
        if is_root {
            check.uid(OTHER_USER).gid(OTHER_USER);
        }
        run(check).await
    }
}

async fn verify(unit: &Path) -> String {
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(unit).env("SYSTEMD_PAGER", "");
    let finished = run(verify).await;
    finished.stdout + &finished.stderr
}
