#include "data/byte_source.h"

#include <zlib.h>

#include "data/sequential_file.h"

namespace tessera::data {
namespace {

constexpr size_t kCompressedBufferBytes = 256u << 10;

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(std::unique_ptr<SequentialReader> file) : file_(std::move(file)) {}
  StatusOr<size_t> read(char* buffer, size_t size) override { return file_->read(buffer, size); }
  uint64_t stored_bytes_read() const override { return file_->bytes_read(); }

 private:
  std::unique_ptr<SequentialReader> file_;
};

// One or several gzip members, as `gzip` and `bgzip` write them.
class GzipSource : public ByteSource {
 public:
  GzipSource(std::string path, std::unique_ptr<SequentialReader> file)
      : path_(std::move(path)), file_(std::move(file)), input_(kCompressedBufferBytes, '\0') {
    // 16: a gzip header is expected.
    TESSERA_CHECK(inflateInit2(&stream_, 16 + MAX_WBITS) == Z_OK);
  }
  ~GzipSource() override { inflateEnd(&stream_); }

  StatusOr<size_t> read(char* buffer, size_t size) override {
    stream_.next_out = reinterpret_cast<Bytef*>(buffer);
    stream_.avail_out = static_cast<uInt>(size);
    while (stream_.avail_out > 0) {
      if (stream_.avail_in == 0) TESSERA_RETURN_IF_ERROR(refill());
      if (stream_.avail_in == 0) {
        if (inside_member_) {
          return data_loss(
              "{}: the compressed data ends in the middle: it is truncated; copy it again", path_);
        }
        break;
      }
      inside_member_ = true;
      const int code = inflate(&stream_, Z_NO_FLUSH);
      if (code == Z_STREAM_END) {
        inside_member_ = false;
        TESSERA_CHECK(inflateReset(&stream_) == Z_OK);
      } else if (code != Z_OK) {
        return data_loss(
            "{}: not valid gzip data near byte {} ({}); copy it again, or take .gz off its "
            "name if it is not compressed",
            path_, file_->bytes_read() - stream_.avail_in,
            stream_.msg != nullptr ? stream_.msg : zError(code));
      }
    }
    return size - stream_.avail_out;
  }
  uint64_t stored_bytes_read() const override { return file_->bytes_read(); }

 private:
  Status refill() {
    TESSERA_ASSIGN_OR_RETURN(const size_t count, file_->read(input_.data(), input_.size()));
    stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
    stream_.avail_in = static_cast<uInt>(count);
    return ok_status();
  }

  const std::string path_;
  std::unique_ptr<SequentialReader> file_;
  std::string input_;
  z_stream stream_{};
  bool inside_member_ = true;  // an empty file is not gzip
};

}  // namespace

StatusOr<std::unique_ptr<ByteSource>> open_byte_source(const std::string& path, bool gzip) {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<SequentialReader> file, SequentialReader::open(path));
  if (gzip) return std::make_unique<GzipSource>(path, std::move(file));
  return std::make_unique<PlainSource>(std::move(file));
}

}  // namespace tessera::data
