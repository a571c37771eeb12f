//! Which descriptor a process finds at which number.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use papa_protocol::classic::Error;
use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::name::Name;
use papa_protocol::process::{Input, Sockets, Stderr, Stdout};
use papa_protocol::socket_reference::{self, Part};

use super::socket::{FIRST_NUMBER, open};
use super::{VerbError, fail};
use crate::world::World;
use crate::world::table::SocketRow;

/// A descriptor the child gets.
#[derive(Debug)]
pub(super) enum Source {
    Null,
    Socket(u64),
    Held(u64),
    Own(usize),
    PipeOut,
    PipeErr,
}

/// Which descriptor the child gets at which number.
pub(super) struct Layout<'a> {
    world: &'a World,
    pub numbers: BTreeMap<i32, Source>,
    /// Sockets opened for this process alone.
    pub fresh: Vec<OwnedFd>,
    /// Numbers of such sockets, by the socket's id.
    own_numbers: BTreeMap<u64, u32>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        Self {
            world,
            numbers: BTreeMap::new(),
            fresh: Vec::new(),
            own_numbers: BTreeMap::new(),
        }
    }

    /// Places a descriptor.
    ///
    /// # Errors
    /// `invalid` if the number is taken.
    pub(super) fn place(&mut self, number: u32, source: Source) -> Result<(), VerbError> {
        let at = i32::try_from(number).unwrap_or(i32::MAX);
        if self.numbers.insert(at, source).is_some() {
            return Err(fail(
                ErrorCode::Invalid,
                &format!("descriptor {number} is given twice"),
            ));
        }
        Ok(())
    }

    /// Places standard input, output and error.
    pub(super) fn standard(&mut self, make: &ProcessMake) -> Result<(), VerbError> {
        let world = self.world;
        let captured = make.reel_bytes.is_none_or(|size| size.0 > 0);
        let stdin = match &make.stdin {
            Input::Null => Source::Null,
            Input::Socket(name) => self.socket(name)?,
            Input::Held(name) => Source::Held(held_id(world, name)?),
        };
        let stdout = || -> Result<Source, VerbError> {
            Ok(match &make.stdout {
                Stdout::Pipe if captured => Source::PipeOut,
                Stdout::Pipe | Stdout::Null => Source::Null,
                Stdout::Held(name) => Source::Held(held_id(world, name)?),
            })
        };
        let stderr = match &make.stderr {
            Stderr::Pipe if captured => Source::PipeErr,
            Stderr::Pipe | Stderr::Null => Source::Null,
            Stderr::Stdout => stdout()?,
            Stderr::Held(name) => Source::Held(held_id(world, name)?),
        };
        self.numbers.insert(0, stdin);
        self.numbers.insert(1, stdout()?);
        self.numbers.insert(2, stderr);
        Ok(())
    }

    /// A socket to hand over: the one that is held, or with `reuseport` one opened for this
    /// process.
    pub(super) fn socket(&mut self, name: &Name) -> Result<Source, VerbError> {
        let world = self.world;
        let id = socket_id(world, name)?;
        match world.table.socket(id) {
            Some(row) if row.number.is_none() => self.open_own(row),
            _ => Ok(Source::Socket(id)),
        }
    }

    fn open_own(&mut self, row: &SocketRow) -> Result<Source, VerbError> {
        self.fresh.push(open(&row.make, Some(row.port))?);
        Ok(Source::Own(self.fresh.len() - 1))
    }

    /// The arguments, with references to sockets replaced; sockets whose number they name are added
    /// to `wanted`.
    pub(super) fn arguments(
        &mut self,
        make: &ProcessMake,
        wanted: &mut Vec<u64>,
    ) -> Result<Vec<Vec<u8>>, VerbError> {
        let world = self.world;
        let mut argv = Vec::with_capacity(make.argv.len() + 2);
        for argument in &make.argv {
            if make.verbatim || !socket_reference::is_present(argument.as_bytes()) {
                argv.push(argument.as_bytes().to_vec());
                continue;
            }
            let text = socket_reference::replace(argument.as_bytes(), &make.name, |name, part| {
                let row = world.table.socket_named(name)?;
                match part {
                    Part::Port => Some(u32::from(row.port)),
                    Part::Fileno => {
                        wanted.push(row.id);
                        Some(row.number.unwrap_or_else(|| self.own_number(row.id)))
                    }
                }
            })?;
            argv.push(text);
        }
        Ok(argv)
    }

    /// Places sockets at their own numbers.
    pub(super) fn sockets_at_their_numbers(
        &mut self,
        mut wanted: Vec<u64>,
    ) -> Result<(), VerbError> {
        let world = self.world;
        wanted.sort_unstable();
        wanted.dedup();
        for id in wanted {
            let Some(row) = world.table.socket(id) else {
                continue;
            };
            let (source, number) = match row.number {
                Some(number) => (Source::Socket(id), number),
                None => (self.open_own(row)?, self.own_number(id)),
            };
            self.place(number, source)?;
        }
        Ok(())
    }

    /// The number of a socket that is opened for this process alone.
    fn own_number(&mut self, id: u64) -> u32 {
        if let Some(number) = self.own_numbers.get(&id) {
            return *number;
        }
        let table = &self.world.table;
        let mut number = table.free_socket_number(FIRST_NUMBER);
        while self.own_numbers.values().any(|other| *other == number) {
            number = table.free_socket_number(number + 1);
        }
        self.own_numbers.insert(id, number);
        number
    }
}

/// Ids of the sockets a process gets at their own numbers: those it names, or for classic requests
/// all.
pub(super) fn sockets_wanted(world: &World, make: &ProcessMake) -> Result<Vec<u64>, VerbError> {
    match &make.sockets {
        Sockets::All => Ok(world
            .table
            .sockets()
            .filter(|row| row.number.is_some())
            .map(|row| row.id)
            .collect()),
        Sockets::Named(names) => names.iter().map(|name| socket_id(world, name)).collect(),
    }
}

fn socket_id(world: &World, name: &Name) -> Result<u64, VerbError> {
    world
        .table
        .socket_named(name)
        .map(|row| row.id)
        .ok_or_else(|| Error::SocketNotFound(name.to_string()))
}

pub(super) fn held_id(world: &World, name: &Name) -> Result<u64, VerbError> {
    world.table.held.get(name).map(|row| row.id).ok_or_else(|| {
        fail(
            ErrorCode::NotFound,
            &format!("no descriptor is held as {name}"),
        )
    })
}
