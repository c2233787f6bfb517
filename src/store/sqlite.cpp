#include "store/sqlite.h"

#include "tessera/base/files.h"

namespace tessera::store {
namespace {

constexpr int kBusyTimeoutMs = 5000;

absl::StatusCode status_code_of(int code) {
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::StatusCode::kUnavailable;
    case SQLITE_FULL:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::StatusCode::kDataLoss;
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CONSTRAINT:
      return absl::StatusCode::kFailedPrecondition;
    default:
      return absl::StatusCode::kInternal;
  }
}

const char* advice_of(int code) {
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return "; another process holds the database, try again";
    case SQLITE_FULL:
      return "; make room on its disk";
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return "; restore the file from a copy, or name another one";
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return "; check that the file and its folder exist and their permissions";
    default:
      return "";
  }
}

}  // namespace

StatusOr<std::unique_ptr<SqliteConnection>> SqliteConnection::open(const std::string& path,
                                                                   Mode mode) {
  const bool read_only = mode == Mode::kReadOnly;
  if (read_only && !file_exists(path)) return not_found("{}: no such file", path);
  const int flags =
      (read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE) |
      SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &handle, flags, nullptr);
  if (handle == nullptr) return internal_error("{}: out of memory for a database connection", path);
  std::unique_ptr<SqliteConnection> connection(new SqliteConnection(handle, path));
  if (code != SQLITE_OK) return connection->error_of(code, "open");
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  // The file may come from anyone: nothing in its schema may call functions with side effects.
  TESSERA_RETURN_IF_ERROR(connection->execute("PRAGMA trusted_schema = OFF"));
  return connection;
}

SqliteConnection::~SqliteConnection() { sqlite3_close_v2(handle_); }

Status SqliteConnection::error_of(int code, std::string_view action) const {
  return error(status_code_of(code), "{}: can't {}: {} (SQLite code {}){}", path_, action,
               sqlite3_errmsg(handle_), code, advice_of(code));
}

Status SqliteConnection::execute(const char* sql) {
  const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? ok_status() : error_of(code, sql);
}

StatusOr<std::unique_ptr<SqliteStatement>> SqliteConnection::prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) return error_of(code, sql);
  return std::make_unique<SqliteStatement>(this, statement);
}

StatusOr<int64_t> SqliteConnection::query_number(const char* sql) {
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<SqliteStatement> statement, prepare(sql));
  TESSERA_ASSIGN_OR_RETURN(const bool row, statement->step());
  if (!row) return internal_error("{}: no answer to {}", path_, sql);
  return statement->number(0);
}

StatusOr<std::string> SqliteConnection::query_text(const char* sql) {
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<SqliteStatement> statement, prepare(sql));
  TESSERA_ASSIGN_OR_RETURN(const bool row, statement->step());
  if (!row) return internal_error("{}: no answer to {}", path_, sql);
  return std::string(statement->bytes(0));
}

void SqliteConnection::roll_back() {
  // Some errors (disk full, I/O) have rolled back already.
  if (sqlite3_get_autocommit(handle_) == 0) {
    sqlite3_exec(handle_, "ROLLBACK", nullptr, nullptr, nullptr);
  }
}

void SqliteStatement::bind_number(int parameter, int64_t value) {
  keep(sqlite3_bind_int64(handle_, parameter, value));
}

void SqliteStatement::bind_text(int parameter, std::string_view value) {
  // A null pointer would bind NULL, not the empty text.
  const char* data = value.empty() ? "" : value.data();
  keep(sqlite3_bind_text64(handle_, parameter, data, value.size(), SQLITE_STATIC, SQLITE_UTF8));
}

void SqliteStatement::bind_blob(int parameter, std::string_view value) {
  const char* data = value.empty() ? "" : value.data();
  keep(sqlite3_bind_blob64(handle_, parameter, data, value.size(), SQLITE_STATIC));
}

StatusOr<bool> SqliteStatement::step() {
  if (bind_error_ != SQLITE_OK) return connection_->error_of(bind_error_, "bind a value");
  const int code = sqlite3_step(handle_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return connection_->error_of(code, sqlite3_sql(handle_));
}

void SqliteStatement::reset() {
  sqlite3_reset(handle_);
  sqlite3_clear_bindings(handle_);
  bind_error_ = SQLITE_OK;
}

std::string_view SqliteStatement::bytes(int column) const {
  const void* data = sqlite3_column_blob(handle_, column);
  const int size = sqlite3_column_bytes(handle_, column);
  return data == nullptr ? std::string_view()
                         : std::string_view(static_cast<const char*>(data), size);
}

}  // namespace tessera::store
