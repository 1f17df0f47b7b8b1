//! The functions that `bridge.cc` calls, and the registration of the class with RocksDB. What they are given is as RocksDB
//! promises in `memtablerep.h`: entries in the arena of the memtable, one writer at a time, no call after the end.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

use super::tree::{Arena, Cursor, Key, SLOTS, Tree};

/// What RocksDB calls it.
const NAME: &CStr = c"daymark.BPlusTree";

const _: () = assert!(SLOTS == 32, "bridge.cc has the cursor with so many entries");

unsafe extern "C" {
    fn daymark_memtable_register(name: *const c_char);
}

/// The option of a family that has this memtable, after making the class known to RocksDB. Text, because the bindings know only
/// RocksDB's own.
pub(in super::super) fn option() -> String {
    static REGISTERED: Once = Once::new();
    // SAFETY: the name ends with a zero byte; the function copies it.
    REGISTERED.call_once(|| unsafe { daymark_memtable_register(NAME.as_ptr()) });
    format!("memtable_factory={}", NAME.to_string_lossy())
}

/// # Safety
/// The arena must outlive the tree.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_new(
    allocate: unsafe extern "C" fn(*mut c_void, usize) -> *mut u8,
    context: *mut c_void,
) -> *mut Tree {
    // SAFETY: as above.
    Box::into_raw(Box::new(unsafe { Tree::new(Arena { allocate, context }) }))
}

/// # Safety
/// `tree` must come from `daymark_memtable_new`, and not be used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_free(tree: *mut Tree) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw(tree) });
}

/// False if an entry with the same key is there.
///
/// # Safety
/// `entry` must be one, in the arena; one call at a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_insert(tree: &Tree, entry: *const u8) -> bool {
    // SAFETY: as above.
    unsafe { tree.insert(entry) }
}

/// # Safety
/// `key` must be that of an entry.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_contains(tree: &Tree, key: *const u8) -> bool {
    // SAFETY: as above.
    let key = unsafe { Key::of_entry(key) };
    // SAFETY: the cursor does not leave this function.
    let mut cursor = unsafe { Cursor::new(tree) };
    cursor.seek(&key);
    // SAFETY: the tree's own entry.
    cursor.entry().is_some_and(|entry| unsafe { Key::of_entry(entry) }.is(&key))
}

/// Shows `visit` the entries from `key` on until it returns false.
///
/// # Safety
/// `key` must be that of an entry.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_get(
    tree: &Tree,
    key: *const u8,
    argument: *mut c_void,
    visit: unsafe extern "C" fn(*mut c_void, *const u8) -> bool,
) {
    // SAFETY: as above.
    let key = unsafe { Key::of_entry(key) };
    // SAFETY: RocksDB's function, with its own argument.
    let visit = |entry| unsafe { visit(argument, entry) };
    // SAFETY: the cursor does not leave this function.
    let mut cursor = unsafe { Cursor::new(tree) };
    match tree.find(&key) {
        // Nearly always: the first one is all that is asked for.
        Some(entry) if !visit(entry) => return,
        Some(entry) => {
            // SAFETY: the tree's own entry.
            cursor.seek(&unsafe { Key::of_entry(entry) });
            cursor.next();
        }
        None => cursor.seek(&key),
    }
    while let Some(entry) = cursor.entry() {
        if !visit(entry) {
            return;
        }
        cursor.next();
    }
}

/// Makes a cursor that stands nowhere.
///
/// # Safety
/// `cursor` must have room for one, and the tree outlive it. It needs no end.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_cursor(tree: *const Tree, cursor: *mut Cursor) {
    // SAFETY: as above.
    unsafe { cursor.write(Cursor::new(tree)) }
}

/// The first entry that is not before the internal key of `length` bytes at `key`; with `backward` the last one that is not
/// behind it.
///
/// # Safety
/// There must be so many bytes, of which the last eight are a tag.
#[unsafe(no_mangle)]
unsafe extern "C" fn daymark_memtable_seek(cursor: &mut Cursor, key: *const u8, length: usize, backward: bool) {
    // SAFETY: as above.
    let key = Key::of_internal(unsafe { std::slice::from_raw_parts(key, length) });
    match backward {
        false => cursor.seek(&key),
        true => cursor.seek_for_prev(&key),
    }
}

#[unsafe(no_mangle)]
extern "C" fn daymark_memtable_first(cursor: &mut Cursor) {
    cursor.seek_to_first();
}

#[unsafe(no_mangle)]
extern "C" fn daymark_memtable_last(cursor: &mut Cursor) {
    cursor.seek_to_last();
}

/// What `Cursor::next` does at the end of a leaf; within one the bridge does it.
#[unsafe(no_mangle)]
extern "C" fn daymark_memtable_next_leaf(cursor: &mut Cursor) {
    cursor.next_leaf();
}

#[unsafe(no_mangle)]
extern "C" fn daymark_memtable_prev(cursor: &mut Cursor) {
    cursor.prev();
}
