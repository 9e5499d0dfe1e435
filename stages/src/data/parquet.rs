//! A Parquet file read column by column, one row group at a time, without Arrow. Knows files, columns and rows; knows
//! no data set and no image. Every error names the file, and the row where there is one.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::job::bad;

/// A Parquet file that was opened; its footer is read, its columns are not.
pub struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
}

/// A column, found by its path.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    index: usize,
    /// The definition level of a value that is there; a lower one is a null in the column or around it.
    present: i16,
}

impl Table {
    /// Opens a file and reads its footer. Errors: `BadInput` for a file that is missing, torn or of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |what: String| bad(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        let reader =
            SerializedFileReader::new(file).map_err(|e| fail(format!("not a readable Parquet file: {e}")))?;
        Ok(Self { path: path.to_path_buf(), reader })
    }

    /// How many rows the file has.
    pub fn rows(&self) -> usize {
        self.reader.metadata().file_metadata().num_rows().max(0) as usize
    }

    /// The first row and the number of rows of each row group.
    pub fn groups(&self) -> Vec<(usize, usize)> {
        let mut first = 0;
        let groups = self.reader.metadata().row_groups().iter();
        groups
            .map(|group| {
                let rows = group.num_rows().max(0) as usize;
                first += rows;
                (first - rows, rows)
            })
            .collect()
    }

    /// Finds a column by its path, as `image.bytes`. Errors: `BadInput` that lists the columns there are, or for a
    /// column of lists.
    pub fn column(&self, path: &str) -> Result<Column> {
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let found = schema.columns().iter().position(|c| c.path().string() == path);
        let Some(index) = found else {
            let known: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
            return Err(self.fail(format!("no column `{path}` (there are: {})", known.join(", "))));
        };
        let column = schema.column(index);
        if column.max_rep_level() > 0 {
            return Err(self.fail(format!("column `{path}` holds lists")));
        }
        Ok(Column { index, present: column.max_def_level() })
    }

    /// The values of an integer or boolean column in one row group. Errors: `BadInput` for a null, another type, a
    /// damaged page.
    pub fn integers(&self, group: usize, column: Column) -> Result<Vec<i64>> {
        match self.reader_of(group, column)? {
            ColumnReader::Int64ColumnReader(reader) => self.values(group, column, reader),
            ColumnReader::Int32ColumnReader(reader) => {
                Ok(self.values(group, column, reader)?.into_iter().map(i64::from).collect())
            }
            ColumnReader::BoolColumnReader(reader) => {
                Ok(self.values(group, column, reader)?.into_iter().map(i64::from).collect())
            }
            _ => Err(self.fail(format!("column `{}`: integers are expected", self.name(column)))),
        }
    }

    /// The values of a binary or text column in one row group. Errors: as [`Table::integers`].
    pub fn bytes(&self, group: usize, column: Column) -> Result<Vec<parquet::data_type::ByteArray>> {
        match self.reader_of(group, column)? {
            ColumnReader::ByteArrayColumnReader(reader) => self.values(group, column, reader),
            _ => Err(self.fail(format!("column `{}`: bytes are expected", self.name(column)))),
        }
    }

    /// An error at a row of this file, counted from 0.
    pub fn at(&self, row: usize, what: impl std::fmt::Display) -> anyhow::Error {
        bad(format!("{}: row {row}: {what}", self.path.display()))
    }

    fn fail(&self, what: impl std::fmt::Display) -> anyhow::Error {
        bad(format!("{}: {what}", self.path.display()))
    }

    fn name(&self, column: Column) -> String {
        self.reader.metadata().file_metadata().schema_descr().column(column.index).path().string()
    }

    fn reader_of(&self, group: usize, column: Column) -> Result<ColumnReader> {
        let reader = self.reader.get_row_group(group).and_then(|g| g.get_column_reader(column.index));
        reader.map_err(|e| self.fail(format!("row group {group}: {}: {e}", self.name(column))))
    }

    fn values<T: DataType>(
        &self,
        group: usize,
        column: Column,
        mut reader: ColumnReaderImpl<T>,
    ) -> Result<Vec<T::T>> {
        let (first, rows) = self.groups()[group];
        let (mut values, mut levels) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        let mut seen = 0;
        while seen < rows {
            let levels = (column.present > 0).then_some(&mut levels);
            let (records, _, _) = reader
                .read_records(rows - seen, levels, None, &mut values)
                .map_err(|e| self.at(first + seen, format!("{}: {e}", self.name(column))))?;
            if records == 0 {
                let what = format!("{}: the row group ends after {seen} of {rows} rows", self.name(column));
                return Err(self.at(first + seen, what));
            }
            seen += records;
        }
        if let Some(row) = levels.iter().position(|&level| level < column.present) {
            return Err(self.at(first + row, format!("{}: null", self.name(column))));
        }
        Ok(values)
    }
}
