//! How the relay's own types are stored in columns.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

use crate::clock::UnixMillis;
use crate::event::EventId;
use crate::queue::stored::{mode_number, mode_of};
use crate::queue::{DeliveryState, ReplyState};
use crate::wechat::Mode;

impl ToSql for EventId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.cast_signed().into())
    }
}

impl FromSql for EventId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(|number| Self(number.cast_unsigned()))
    }
}

impl ToSql for UnixMillis {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}

impl FromSql for UnixMillis {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self)
    }
}

impl ToSql for DeliveryState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok((*self as i64).into())
    }
}

impl FromSql for DeliveryState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        Self::ALL.into_iter().find(|state| *state as i64 == number).ok_or(FromSqlError::OutOfRange(number))
    }
}

impl ToSql for ReplyState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok((*self as i64).into())
    }
}

impl FromSql for ReplyState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        Self::of(number).ok_or(FromSqlError::OutOfRange(number))
    }
}

impl ToSql for Mode {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(i64::from(mode_number(*self)).into())
    }
}

impl FromSql for Mode {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        mode_of(number).ok_or(FromSqlError::OutOfRange(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::stored::MODES;

    #[test]
    fn numbers_in_the_store_are_read_as_they_are_written() {
        for (number, state) in DeliveryState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
        for mode in MODES {
            let Ok(ToSqlOutput::Owned(written)) = mode.to_sql() else { panic!("{mode}") };
            assert_eq!(Mode::column_result((&written).into()).ok(), Some(mode));
        }
        assert!(DeliveryState::column_result(ValueRef::Integer(5)).is_err());
    }
}
