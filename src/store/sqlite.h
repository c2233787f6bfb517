// SQLite connections and prepared statements that close themselves, with errors as Status.
// A connection and its statements belong to one thread at a time.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "tessera/base/status.h"

namespace tessera::store {

class SqliteStatement;

class SqliteConnection {
 public:
  enum class Mode { kReadWriteCreate, kReadOnly };

  static StatusOr<std::unique_ptr<SqliteConnection>> open(const std::string& path, Mode mode);
  ~SqliteConnection();
  SqliteConnection(const SqliteConnection&) = delete;
  SqliteConnection& operator=(const SqliteConnection&) = delete;

  // One or more statements without results.
  Status execute(const char* sql);
  StatusOr<std::unique_ptr<SqliteStatement>> prepare(const char* sql);
  // The first column of the first row.
  StatusOr<int64_t> query_number(const char* sql);
  StatusOr<std::string> query_text(const char* sql);
  // BEGIN IMMEDIATE, `body`, COMMIT; when anything fails, ROLLBACK.
  template <class Body>
  Status transaction(Body&& body) {
    TESSERA_RETURN_IF_ERROR(execute("BEGIN IMMEDIATE"));
    Status status = body();
    if (status.ok()) status = execute("COMMIT");
    if (!status.ok()) roll_back();
    return status;
  }
  Status error_of(int code, std::string_view action) const;

 private:
  SqliteConnection(sqlite3* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  void roll_back();

  sqlite3* const handle_;
  const std::string path_;
};

// Parameters count from 1, columns from 0. Texts and blobs bound are borrowed until the next
// reset().
class SqliteStatement {
 public:
  SqliteStatement(const SqliteConnection* connection, sqlite3_stmt* handle)
      : connection_(connection), handle_(handle) {}
  ~SqliteStatement() { sqlite3_finalize(handle_); }
  SqliteStatement(const SqliteStatement&) = delete;
  SqliteStatement& operator=(const SqliteStatement&) = delete;

  void bind_number(int parameter, int64_t value);
  void bind_text(int parameter, std::string_view value);
  void bind_blob(int parameter, std::string_view value);
  // True: a row is there. Errors of the binds show here too.
  StatusOr<bool> step();
  void reset();
  int64_t number(int column) const { return sqlite3_column_int64(handle_, column); }
  // Valid until the next step() or reset().
  std::string_view bytes(int column) const;

 private:
  void keep(int code) {
    if (bind_error_ == SQLITE_OK) bind_error_ = code;
  }
  const SqliteConnection* const connection_;
  sqlite3_stmt* const handle_;
  int bind_error_ = SQLITE_OK;
};

}  // namespace tessera::store
