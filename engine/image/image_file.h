// Framed image files: magics, then records of a length and a message, some followed by raw bytes.
#pragma once

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/image/image_io.h"

namespace stasis::engine {

/// "pstree.img"; "core-7.img". The key is decimal but for ghost-file and tcp-stream, where CRIU
/// writes it in hexadecimal. Service files ("stats-dump") have no ".img".
std::string ImageName(std::string_view type);
std::string ImageName(std::string_view type, std::uint64_t key);

/// The type of a file by its name, with or without ".img" and key: "core" of "core-7.img". Empty
/// when it is none that has a magic.
std::string_view ImageType(std::string_view name);

/// Makes the bytes of one image file of `type` ("core", "files", "stats-dump", …).
class ImageFileBuilder {
 public:
  explicit ImageFileBuilder(std::string_view type);

  /// Appends a record. Internal when a required field of `message` is unset: no reader would take
  /// it.
  Status Add(const google::protobuf::MessageLite& message);
  /// Appends a record that is serialized already.
  void AddRecord(std::string_view message);
  /// Appends bytes that belong to the record before.
  void AddRaw(std::string_view bytes) { bytes_ += bytes; }

  /// No record yet: CRIU leaves such a file out.
  bool empty() const { return records_ == 0; }
  std::string_view bytes() const { return bytes_; }

 private:
  std::string bytes_;
  std::uint64_t records_ = 0;
};

/// Writes an image file of one record under `name`.
Status PutOne(ImageSink& sink, std::string_view name, std::string_view type,
              const google::protobuf::MessageLite& message);

/// One image file, read from its start. All errors name the file.
class ImageFileReader {
 public:
  /// NotFound: no such file. InvalidArgument: not an image of `type`. ResourceExhausted: absurdly
  /// large.
  static Result<ImageFileReader> Open(const ImageSource& source, std::string_view name,
                                      std::string_view type);

  bool AtEnd() const { return offset_ == bytes_.size(); }
  /// The next record's message. DataLoss when the file ends within it. Valid while the reader
  /// lives.
  Result<std::string_view> Record();
  /// The same, parsed. DataLoss for one that does not parse or lacks a required field.
  Status Record(google::protobuf::MessageLite& message);
  /// The next `length` bytes, or those up to the end.
  Result<std::string_view> Raw(std::uint64_t length);
  std::string_view Rest();

 private:
  ImageFileReader(std::string name, std::string bytes)
      : name_(std::move(name)), bytes_(std::move(bytes)) {}
  Result<std::uint32_t> Word();

  std::string name_;
  std::string bytes_;
  std::size_t offset_ = 0;
};

/// One record and the raw bytes that follow it ("pipes-data", "fifo-data", "sk-queues",
/// "bpfmap-data").
struct ImageRecord {
  std::string message;
  std::string bytes;
};

/// All records of file `name`, with their raw bytes where `type` has some whose length the record
/// tells. A missing file has no records.
Result<std::vector<ImageRecord>> ReadImageRecords(const ImageSource& source, std::string_view name,
                                                  std::string_view type);

/// All records of file `name`, each a T. A missing file has none.
template <typename T>
Result<std::vector<T>> ReadRecords(const ImageSource& source, std::string_view name,
                                   std::string_view type) {
  std::vector<T> records;
  Result<ImageFileReader> reader = ImageFileReader::Open(source, name, type);
  if (reader.status().code() == StatusCode::kNotFound) return records;
  RETURN_IF_ERROR(reader.status());
  while (!reader->AtEnd()) RETURN_IF_ERROR(reader->Record(records.emplace_back()));
  return records;
}

/// The one record of file `name`. NotFound when there is no such file; DataLoss when it holds none
/// or more.
template <typename T>
Result<T> ReadOne(const ImageSource& source, std::string_view name, std::string_view type) {
  ASSIGN_OR_RETURN(ImageFileReader reader, ImageFileReader::Open(source, name, type));
  T record;
  RETURN_IF_ERROR(reader.Record(record));
  if (!reader.AtEnd()) return DataLoss(std::string(name) + ": more than one record");
  return record;
}

}  // namespace stasis::engine
