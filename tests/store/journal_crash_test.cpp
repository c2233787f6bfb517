// SIGKILL at any instant loses no acknowledged record. (It can't show what a power failure does:
// that rests on SQLite's synchronous = FULL.)
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <string>
#include <vector>

#include "base/temporary_folder.h"
#include "tessera/store/journal.h"

namespace tessera::store {
namespace {

using test::TemporaryFolder;

std::string body_of(uint64_t sequence) {
  return std::string(1 + sequence * 37 % 3000, static_cast<char>('a' + sequence % 26));
}

// Appends batches of 1 to 4 records and writes the last sequence of each one into the pipe once
// append has returned. Never returns; ends by the parent's signal.
[[noreturn]] void append_for_ever(const std::string& path, int pipe_fd) {
  StatusOr<std::unique_ptr<Journal>> journal = open_journal(path);
  if (!journal.ok()) ::_exit(10);
  while (true) {
    const uint64_t first = (*journal)->last_sequence() + 1;
    std::vector<JournalRecord> records(1 + first % 4);
    for (size_t i = 0; i < records.size(); ++i) {
      records[i].kind = "receipt";
      records[i].unix_ms = static_cast<int64_t>(first + i);
      records[i].body = body_of(first + i);
    }
    if (!(*journal)->append(&records).ok()) ::_exit(11);
    const uint64_t acknowledged = records.back().sequence;
    if (::write(pipe_fd, &acknowledged, sizeof(acknowledged)) != sizeof(acknowledged)) ::_exit(12);
  }
}

// The next acknowledgement; 0 when the child has gone.
uint64_t read_acknowledgement(int pipe_fd) {
  uint64_t value = 0;
  const ssize_t size = ::read(pipe_fd, &value, sizeof(value));
  return size == sizeof(value) ? value : 0;
}

// Starts a child, kills it after `acknowledgements` of them, and returns the last one it gave.
uint64_t append_and_kill(const std::string& path, int acknowledgements) {
  int pipe_fds[2];
  EXPECT_EQ(::pipe(pipe_fds), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(pipe_fds[0]);
    append_for_ever(path, pipe_fds[1]);
  }
  ::close(pipe_fds[1]);
  uint64_t last = 0;
  for (int i = 0; i < acknowledgements; ++i) {
    const uint64_t value = read_acknowledgement(pipe_fds[0]);
    EXPECT_GT(value, last);
    if (value == 0) break;
    last = value;
  }
  EXPECT_EQ(::kill(child, SIGKILL), 0);
  // What it acknowledged before the signal came counts too.
  while (const uint64_t value = read_acknowledgement(pipe_fds[0])) last = value;
  ::close(pipe_fds[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  return last;
}

void expect_whole(Journal* journal, uint64_t acknowledged) {
  EXPECT_GE(journal->last_sequence(), acknowledged);
  uint64_t visited = 0;
  const Status replayed = journal->replay(0, [&](const JournalRecord& record) {
    ++visited;
    EXPECT_EQ(record.sequence, visited);
    EXPECT_EQ(record.body, body_of(visited));
    return ok_status();
  });
  EXPECT_TRUE(replayed.ok()) << replayed;
  EXPECT_EQ(visited, journal->last_sequence());
  EXPECT_TRUE(journal->verify_chain().ok());
}

TEST(JournalCrashTest, EveryAcknowledgedRecordSurvivesSigkill) {
  const TemporaryFolder folder;
  const std::string path = folder / "journal.db";
  uint64_t last = 0;
  for (int round = 0; round < 8; ++round) {
    SCOPED_TRACE(round);
    const uint64_t acknowledged = append_and_kill(path, 1 + round * 9);
    ASSERT_GT(acknowledged, last);
    {
      // A reader recovers what the dead writer's log holds, before any writer has come back.
      StatusOr<std::unique_ptr<Journal>> reader = open_journal(path, /*read_only=*/true);
      ASSERT_TRUE(reader.ok()) << reader.status();
      expect_whole(reader->get(), acknowledged);
    }
    // The lock went with the process.
    StatusOr<std::unique_ptr<Journal>> writer = open_journal(path);
    ASSERT_TRUE(writer.ok()) << writer.status();
    expect_whole(writer->get(), acknowledged);
    last = (*writer)->last_sequence();
  }
}

}  // namespace
}  // namespace tessera::store
