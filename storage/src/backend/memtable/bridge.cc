// RocksDB's memtable class on top of the B+ tree of tree.rs, by way of bridge.rs. Nothing is decided here.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#include "db/lookup_key.h"
#include "memory/arena.h"
#include "rocksdb/memtablerep.h"
#include "rocksdb/utilities/object_registry.h"

namespace {

// As `Cursor` of tree.rs.
struct Cursor {
  const void* tree;
  const void* next;
  uint32_t place;
  uint32_t len;
  const char* entries[32];
};

}  // namespace

extern "C" {
void* daymark_memtable_new(char* (*allocate)(void*, size_t), void* context);
void daymark_memtable_free(void* tree);
bool daymark_memtable_insert(const void* tree, const char* entry);
bool daymark_memtable_contains(const void* tree, const char* key);
void daymark_memtable_get(const void* tree, const char* key, void* argument,
                          bool (*visit)(void*, const char*));
void daymark_memtable_cursor(const void* tree, Cursor* cursor);
void daymark_memtable_seek(Cursor* cursor, const char* key, size_t length, bool backward);
void daymark_memtable_first(Cursor* cursor);
void daymark_memtable_last(Cursor* cursor);
void daymark_memtable_next_leaf(Cursor* cursor);
void daymark_memtable_prev(Cursor* cursor);
void daymark_memtable_register(const char* name);
}

namespace {

using rocksdb::Allocator;
using rocksdb::Arena;
using rocksdb::KeyHandle;
using rocksdb::MemTableRep;
using rocksdb::Slice;

char* AllocateAligned(void* allocator, size_t bytes) {
  return static_cast<Allocator*>(allocator)->AllocateAligned(bytes);
}

class TreeIterator final : public MemTableRep::Iterator {
 public:
  explicit TreeIterator(const void* tree) { daymark_memtable_cursor(tree, &cursor_); }

  bool Valid() const override { return cursor_.place < cursor_.len; }

  const char* key() const override { return cursor_.entries[cursor_.place]; }

  void Next() override {
    if (++cursor_.place >= cursor_.len) {
      daymark_memtable_next_leaf(&cursor_);
    }
  }

  void Prev() override { daymark_memtable_prev(&cursor_); }

  void Seek(const Slice& internal_key, const char* memtable_key) override {
    SeekTo(internal_key, memtable_key, false);
  }

  void SeekForPrev(const Slice& internal_key, const char* memtable_key) override {
    SeekTo(internal_key, memtable_key, true);
  }

  void SeekToFirst() override { daymark_memtable_first(&cursor_); }

  void SeekToLast() override { daymark_memtable_last(&cursor_); }

 private:
  void SeekTo(const Slice& internal_key, const char* memtable_key, bool backward) {
    const Slice key =
        memtable_key == nullptr ? internal_key : rocksdb::GetLengthPrefixedSlice(memtable_key);
    daymark_memtable_seek(&cursor_, key.data(), key.size(), backward);
  }

  Cursor cursor_;
};

class TreeRep final : public MemTableRep {
 public:
  explicit TreeRep(Allocator* allocator)
      : MemTableRep(allocator), tree_(daymark_memtable_new(AllocateAligned, allocator)) {}

  ~TreeRep() override { daymark_memtable_free(tree_); }

  void Insert(KeyHandle handle) override { InsertKey(handle); }

  bool InsertKey(KeyHandle handle) override {
    return daymark_memtable_insert(tree_, static_cast<const char*>(handle));
  }

  bool Contains(const char* key) const override { return daymark_memtable_contains(tree_, key); }

  void Get(const rocksdb::LookupKey& key, void* argument,
           bool (*visit)(void*, const char*)) override {
    daymark_memtable_get(tree_, key.memtable_key().data(), argument, visit);
  }

  // All memory comes from the arena.
  size_t ApproximateMemoryUsage() override { return 0; }

  MemTableRep::Iterator* GetIterator(Arena* arena) override {
    void* room = arena == nullptr ? operator new(sizeof(TreeIterator))
                                  : arena->AllocateAligned(sizeof(TreeIterator));
    return new (room) TreeIterator(tree_);
  }

 private:
  void* const tree_;
};

class TreeFactory final : public rocksdb::MemTableRepFactory {
 public:
  explicit TreeFactory(std::string name) : name_(std::move(name)) {}

  const char* Name() const override { return name_.c_str(); }

  using rocksdb::MemTableRepFactory::CreateMemTableRep;
  // The order of keys is that of their bytes: families with another comparator must not use it.
  MemTableRep* CreateMemTableRep(const MemTableRep::KeyComparator&, Allocator* allocator,
                                 const rocksdb::SliceTransform*, rocksdb::Logger*) override {
    return new TreeRep(allocator);
  }

  bool CanHandleDuplicatedKey() const override { return true; }

 private:
  const std::string name_;
};

}  // namespace

void daymark_memtable_register(const char* name) {
  const std::string factory(name);
  rocksdb::ObjectLibrary::Default()->AddFactory<rocksdb::MemTableRepFactory>(
      factory,
      [factory](const std::string&, std::unique_ptr<rocksdb::MemTableRepFactory>* guard,
                std::string*) {
        guard->reset(new TreeFactory(factory));
        return guard->get();
      });
}
