//! What the manager itself logs, and what workers write through it, under `papactl up`: bounded,
//! and with the mode that Circus gives it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use nix::sys::signal::Signal;

use papa_harness::{Site, procfs, wait_until, wait_until_for};

/// An installation with this in the section `[circus]`, started.
fn start(circus: &str, watchers: &str) -> Site {
    let site = Site::new(&format!("{circus}\n{watchers}"));
    site.done("up site.ini --no-wait");
    site
}

fn size(site: &Site, name: &str) -> u64 {
    fs::metadata(site.file(name)).map_or(0, |data| data.len())
}

fn read(site: &Site, name: &str) -> String {
    fs::read_to_string(site.file(name)).unwrap_or_default()
}

/// The log that `papactl up` gives a manager.
const LOG: &str = "papa/circus.manager.log";
const ASIDE: &str = "papa/circus.manager.log.1";

#[test]
fn lines_of_workers_under_up_filled_the_runtime_directory() {
    let site = start(
        "logoutput_max_bytes = 500000",
        "[watcher:loud]\ncmd = sh -c 'seq -f \"line %.0f of a worker that says much\" 200000; echo last > DIR/done; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.class = StdoutStream\n",
    );
    wait_until("everything was said", || site.file("done").exists());
    wait_until("the last line is there", || {
        read(&site, LOG).contains("line 200000 of") || read(&site, ASIDE).contains("line 200000 of")
    });
    // A write is at most 256 KiB.
    let most = 500_000 + 256 * 1024 + 4096;
    assert!(size(&site, LOG) < most, "{}", size(&site, LOG));
    assert!((500_000..most).contains(&size(&site, ASIDE)));
    let both = read(&site, ASIDE) + &read(&site, LOG);
    let mut numbers = both
        .lines()
        .filter_map(|line| line.strip_prefix("line ")?.split_once(' ')?.0.parse().ok());
    let mut last: u64 = numbers.next().unwrap();
    for number in numbers {
        assert_eq!(
            number,
            last + 1,
            "lines are whole and in order where the log was turned"
        );
        last = number;
    }
    assert_eq!(last, 200_000);
    // Standard output and error lead to the file that is there, and so they do for a successor.
    for turn in 0..2 {
        let pid = site.manager();
        let inode = fs::metadata(site.file(LOG)).unwrap().ino();
        for descriptor in 1..3 {
            let opened = fs::metadata(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
            assert_eq!(opened.ino(), inode, "descriptor {descriptor}, turn {turn}");
        }
        if turn == 0 {
            assert!(site.papactl("upgrade").status.success());
        }
    }
}

#[test]
fn a_flapping_watcher_filled_the_managers_log() {
    let site = start(
        "logoutput = DIR/m.log",
        "[watcher:bad]\ncmd = sh -c 'echo x >> DIR/count'\ncopy_env = true\n\
         backoff_first = 0.01\nbackoff_max = 0.01\n",
    );
    let ends = || read(&site, "count").lines().count();
    // Twelve ends a second on an idle machine, and far fewer on a busy one.
    let patience = std::time::Duration::from_secs(60);
    wait_until_for("it has ended often", patience, || ends() > 150);
    assert!(site.papactl("quit").status.success());
    wait_until("the numbers are said", || {
        read(&site, "m.log").matches(" more of these ").count() >= 2
    });
    let text = read(&site, "m.log");
    for (said, counted) in [
        ("INFO worker exited", "worker exited with 0"),
        ("INFO worker started", "worker started"),
    ] {
        let lines = text.lines().filter(|line| line.contains(said)).count();
        assert!(
            (100..120).contains(&lines),
            "{lines} for {} ends:\n{text}",
            ends()
        );
        let summary = format!(" more of these in the last minute: watcher \"bad\": {counted}");
        assert!(text.contains(&summary), "{text}");
    }
}

#[test]
fn logoutput_has_the_mode_that_circus_gives_it_is_added_to_and_turned() {
    let site = start(
        "logoutput = DIR/m.log\nlogoutput_max_bytes = 2000\nloglevel = debug",
        "[watcher:w]\ncmd = sleep 1000\n",
    );
    // The mask of whoever typed `up` is all that counts.
    let mask = procfs::status_line(site.manager(), "Umask").unwrap();
    let mask = u32::from_str_radix(mask.trim(), 8).unwrap();
    let mode = |name: &str| fs::metadata(site.file(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("m.log"), 0o666 & !mask);
    // Somebody's link where the full log goes is not followed.
    let precious = site.file("precious");
    fs::write(&precious, "mine\n").unwrap();
    symlink(&precious, site.file("m.log.1")).unwrap();
    wait_until("it was turned", || {
        site.papactl("restart w");
        fs::symlink_metadata(site.file("m.log.1")).is_ok_and(|data| data.is_file())
    });
    assert_eq!(fs::read_to_string(&precious).unwrap(), "mine\n");
    assert!(size(&site, "m.log") < 2000 + 4096);
    assert_eq!(mode("m.log"), 0o666 & !mask);
    // Moved by somebody, it is opened anew, without being asked and when asked.
    for signal in [None, Some(Signal::SIGUSR1)] {
        fs::rename(site.file("m.log"), site.file("moved")).unwrap();
        if let Some(signal) = signal {
            procfs::signal(site.manager(), signal);
        }
        wait_until("there is a new one", || {
            site.papactl("restart w");
            site.file("m.log").exists()
        });
    }
    // The next manager adds to what is there.
    let before = read(&site, "m.log.1") + &read(&site, "m.log");
    assert!(site.papactl("quit").status.success());
    assert!(site.papactl("up site.ini").status.success());
    let after = read(&site, "m.log.1") + &read(&site, "m.log");
    let tail = before.lines().last().unwrap();
    assert!(after.contains(tail), "{before}\n--\n{after}");
}
