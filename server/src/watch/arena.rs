//! A table whose rows are named by small keys that are never mistaken for a later row in the same place. Knows nothing
//! of what it holds.

/// Names a row. A key of a removed row finds nothing, whatever has taken its place.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Not after any other key, for bounds of ordered sets.
    pub const LEAST: Self = Self { index: 0, generation: 0 };
}

/// Rows of one kind.
pub struct Arena<T> {
    rows: Vec<Row<T>>,
    free: Vec<u32>,
}

struct Row<T> {
    /// How many rows have lived in this place before.
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), free: Vec::new() }
    }
}

impl<T> Arena<T> {
    /// Adds a row. At most 2^32 rows live at once.
    pub fn insert(&mut self, value: T) -> Key {
        if let Some(index) = self.free.pop() {
            let row = &mut self.rows[index as usize];
            row.value = Some(value);
            return Key { index, generation: row.generation };
        }
        let index = u32::try_from(self.rows.len()).expect("memory ends before 2^32 rows");
        self.rows.push(Row { generation: 0, value: Some(value) });
        Key { index, generation: 0 }
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let row = self.rows.get_mut(key.index as usize).filter(|row| row.generation == key.generation)?;
        let value = row.value.take()?;
        row.generation = row.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// The row of that name.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.rows.get(key.index as usize).filter(|row| row.generation == key.generation)?.value.as_ref()
    }

    /// The row of that name, to be changed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.rows.get_mut(key.index as usize).filter(|row| row.generation == key.generation)?.value.as_mut()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of all rows.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let key = |(index, row): (usize, &Row<T>)| {
            row.value.is_some().then_some(Key { index: index as u32, generation: row.generation })
        };
        self.rows.iter().enumerate().filter_map(key)
    }
}

impl<T> std::ops::Index<Key> for Arena<T> {
    type Output = T;

    /// The row of a key that is known to be in use.
    fn index(&self, key: Key) -> &T {
        self.get(key).expect("the key names a row in use")
    }
}

impl<T> std::ops::IndexMut<Key> for Arena<T> {
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).expect("the key names a row in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_its_successor() {
        let mut arena = Arena::default();
        let first = arena.insert("first");
        assert_eq!(arena.remove(first), Some("first"));
        assert_eq!(arena.remove(first), None);
        let second = arena.insert("second");
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&"second")));
        assert_eq!((arena.len(), arena.keys().collect::<Vec<_>>()), (1, vec![second]));
    }
}
