//! What is shown beside what is printed.

/// Numbers, stamps and places of one run, made equal to those of another: digits become `0`, the
/// runtime directory and what is measured go, blanks count once.
pub(crate) fn masked(line: &str) -> String {
    let mut text = String::new();
    for word in line.split_whitespace() {
        let word = word
            .find("/papa/")
            .map_or(word, |begin| &word[begin..])
            .trim_end_matches("…");
        for c in word.chars() {
            let c = if c.is_ascii_digit() { '0' } else { c };
            if !(c == '0' && text.ends_with('0')) {
                text.push(c);
            }
        }
        text.push(' ');
    }
    text.trim_end().to_owned()
}

/// A command of an example, and the lines it prints there.
pub(crate) struct Typed {
    pub(crate) command: String,
    pub(crate) output: Vec<String>,
}

/// The commands of a block, behind `$ `; what follows three blanks or a `#` explains.
pub(crate) fn typed(block: &[&str]) -> Vec<Typed> {
    let mut all: Vec<Typed> = Vec::new();
    for line in block {
        if let Some(command) = line.strip_prefix("$ ") {
            let command = command.split("   ").next().unwrap();
            let command = command.split(" # ").next().unwrap();
            all.push(Typed {
                command: command.trim_end().to_owned(),
                output: Vec::new(),
            });
        } else if let Some(last) = all.last_mut() {
            last.output.push((*line).to_owned());
        }
    }
    all
}

#[test]
fn digits_and_places_are_masked() {
    let line = "kernel:  running, pid 8721, /run/user/1000/papa/20202.sock, 3 processes";
    let masked = masked(line);
    assert_eq!(masked, "kernel: running, pid 0, /papa/0.sock, 0 processes");
}
