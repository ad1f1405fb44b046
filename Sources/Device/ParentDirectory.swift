// ParentDirectory: a file's name survives a power cut once the directory that it is in has been flushed.

import Glibc

public struct ParentDirectory {
    /// Of a file, as its path has it.
    public let path: String

    public init(of file: String) {
        path = file.lastIndex(of: "/").map { $0 == file.startIndex ? "/" : String(file[..<$0]) } ?? "."
    }

    /// False, with `errno` set, if the names in it may be lost. A filesystem that knows nothing of flushing directories is taken to need none.
    public func synchronize() -> Bool {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return false }
        let status = fsync(descriptor)
        let number = errno
        close(descriptor)
        errno = number
        return status == 0 || number == EINVAL
    }
}
