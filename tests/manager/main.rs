//! The manager from outside: real binaries, a kernel of the test's own, an INI file, log files. One
//! file per behaviour.

// A test says what went wrong by failing.
#![allow(clippy::unwrap_used)]

mod accounts;
mod age_and_demand;
mod bad_disk;
mod cgroups;
mod change;
mod configuration;
mod control;
mod crash;
mod doctor;
mod down;
mod elsewhere;
mod errors;
mod foreground;
mod from_circusd;
mod ini_oracle;
mod isolation;
mod journal;
mod last_words;
mod later_version;
mod lifecycle;
mod listing;
mod logs;
mod logs_killed;
mod logs_streams;
mod logs_view;
mod orphans;
mod orphans_unmarked;
mod outdated;
mod output_refused;
mod own_files;
mod own_log;
mod papactl;
mod probes;
mod releases;
mod reload;
mod saves;
mod security;
mod servers;
mod slow_disk;
mod sockets;
mod stack;
mod starts;
mod strays;
mod stuck;
mod successor;
mod surroundings;
mod watchers;
mod web_stack;
mod whole_stop;
mod zero_downtime;
