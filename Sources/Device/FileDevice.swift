// FileDevice: an image file or a block device, read and written past the page cache where the host allows it (tmpfs,
// for one, may not), so that file data is not cached twice and recovery sees what the medium holds.
//
// Tree nodes are the exception, when read (`readCached`): the daemon's own cache holds but a part of a large tree, and the host's
// holds the rest for as long as nobody needs the memory more. The host drops its copy of what is written past it; should it not,
// the node's checksum, which its parent knows, tells.

public import Format
import Glibc
public import Memory
import CSupport
import Synchronization

public final class FileDevice: BlockDevice, @unchecked Sendable {
    public let blockCount: UInt64
    public let isReadOnly: Bool
    public let name: String
    /// For locks (ImageLock); I/O goes through the methods.
    public let descriptor: Int32
    public let isDirect: Bool
    public let isBlockDevice: Bool
    /// The same file by way of the page cache, where `descriptor` goes past it; else `descriptor`.
    private let cached: Int32
    private let usesHostCache = Atomic<Bool>(false)
    public var isThin: Bool { !isBlockDevice }

    // After a failed flush there is no good one any more (D2): the host tells of a write that it lost once, to whoever asks first, and a
    // disk that has refused a flush may carry out the next with nothing left to write. So a flush counts only when no other one had
    // failed, nor was under way and fails: of several at once each waits for the others. Through the page cache they go one at a time.
    private let flushing = Lock()
    private var isBroken = false
    /// Those under way, numbered as they began.
    private var underWay: [UInt64] = []
    private var begun: UInt64 = 0

    public enum Access: Sendable { case readOnly, readWrite }

    /// Opens an existing image or device. `isDirect` tells whether O_DIRECT could be had.
    public init(path: String, access: Access) throws(DeviceError) {
        // Opening a fifo waits for whoever opens the other end.
        var found = stat()
        guard stat(path, &found) == 0 else { throw Self.error(.open, path, "") }
        guard [S_IFREG, S_IFBLK].contains(found.st_mode & S_IFMT) else {
            throw DeviceError(.open, errno: EINVAL, "\(path): neither a regular file nor a block device")
        }
        let flags = (access == .readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC
        var descriptor = Glibc.open(path, flags | daybook_o_direct())
        var direct = descriptor >= 0
        if descriptor < 0 && errno == EINVAL {
            descriptor = Glibc.open(path, flags)
            direct = false
        }
        guard descriptor >= 0 else { throw Self.error(.open, path, "") }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            defer { Glibc.close(descriptor) }
            throw Self.error(.open, path, "")
        }
        let size: Int64
        switch status.st_mode & S_IFMT {
        case S_IFREG: size = Int64(status.st_size)
        case S_IFBLK: size = daybook_block_device_size(descriptor)
        default:
            Glibc.close(descriptor)
            throw DeviceError(.open, errno: EINVAL, "\(path): neither a regular file nor a block device")
        }
        isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
        self.descriptor = descriptor
        isDirect = direct
        // By number, so that it is the same file whatever has become of its name.
        let second = direct ? Glibc.open("/proc/self/fd/\(descriptor)", O_RDONLY | O_CLOEXEC) : -1
        cached = second >= 0 ? second : descriptor
        blockCount = UInt64(max(size, 0)) >> UInt64(blockShift)
        isReadOnly = access == .readOnly
        name = path
    }

    deinit {
        if cached != descriptor { Glibc.close(cached) }
        Glibc.close(descriptor)
    }

    private static func error(_ operation: DeviceError.Operation, _ name: String, _ place: String) -> DeviceError {
        let number = errno
        return DeviceError(operation, errno: number, "\(name)\(place): \(String(cString: strerror(number)))")
    }

    public func read(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        // A block number may come from the image itself; its offset has to be one.
        guard block.value < blockCount else {
            throw DeviceError(.read, errno: EIO, "\(name): reading \(block): end of the image")
        }
        var done = 0
        while done < bytes.count {
            let count = pread(descriptor, bytes.pointer + done, bytes.count - done, off_t(block.value) << 12 + off_t(done))
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else { throw Self.error(.read, name, ": reading \(block)") }
            guard count > 0 else {
                throw DeviceError(.read, errno: EIO, "\(name): reading \(block): end of the image")
            }
            done += count
        }
    }

    public func admitHostCache() { usesHostCache.store(true, ordering: .relaxed) }

    public func readResident(_ block: BlockNumber, into bytes: RawBytes) -> Bool {
        usesHostCache.load(ordering: .relaxed) && block.value < blockCount
            && daybook_read_resident(cached, bytes.pointer, bytes.count, Int64(block.value) << 12) == bytes.count
    }

    public func readCached(_ block: BlockNumber, into bytes: RawBytes) throws(DeviceError) {
        if readResident(block, into: bytes) { return }
        guard cached != descriptor, usesHostCache.load(ordering: .relaxed), block.value < blockCount else { return try read(block, into: bytes) }
        // A checkpoint writes neighbours in the tree side by side, and who asks for one mostly asks for others soon.
        let first = block.value & ~(Self.nearby - 1)
        posix_fadvise(cached, off_t(first) << 12, off_t(Self.nearby) << 12, POSIX_FADV_WILLNEED)
        var count: Int
        repeat { count = pread(cached, bytes.pointer, bytes.count, off_t(block.value) << 12) } while count < 0 && errno == EINTR
        if count != bytes.count { try read(block, into: bytes) }
    }

    /// Blocks that are read together: on the media measured, as fast as one.
    private static let nearby: UInt64 = 16

    public func write(_ block: BlockNumber, _ bytes: RawBytes) throws(DeviceError) {
        try expectInside(block, UInt64(bytes.count >> blockShift))
        var done = 0
        while done < bytes.count {
            let count = pwrite(descriptor, bytes.pointer + done, bytes.count - done, off_t(block.value) << 12 + off_t(done))
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { throw Self.error(.write, name, ": writing \(block)") }
            done += count
        }
    }

    /// As for reading; and a file must not grow by what an image says.
    private func expectInside(_ block: BlockNumber, _ count: UInt64) throws(DeviceError) {
        guard block.value < blockCount, count <= blockCount - block.value else {
            throw DeviceError(.write, errno: EIO, "\(name): writing \(block): behind the end of the image")
        }
    }

    public func write(_ block: BlockNumber, gathering pages: [RawBytes]) throws(DeviceError) {
        try expectInside(block, UInt64(pages.count))
        var first = 0
        while first < pages.count {
            let batch = min(pages.count - first, 1024)  // IOV_MAX
            var vectors = [iovec]()
            vectors.reserveCapacity(batch)
            for index in first..<(first + batch) {
                let page = pages[index]
                // Neighbours in memory become one vector.
                if let last = vectors.last, last.iov_base + last.iov_len == page.pointer {
                    vectors[vectors.count - 1].iov_len += page.count
                } else {
                    vectors.append(iovec(iov_base: page.pointer, iov_len: page.count))
                }
            }
            let offset = off_t(block.value + UInt64(first)) << 12
            var count: Int
            repeat { count = pwritev(descriptor, vectors, Int32(vectors.count), offset) } while count < 0 && errno == EINTR
            guard count >= 0 else { throw Self.error(.write, name, ": writing \(block)") }
            if count < batch << blockShift {
                // Short: finish page by page, which reports the reason.
                for index in (count >> blockShift)..<batch {
                    try write(block + UInt64(first + index), pages[first + index])
                }
            }
            first += batch
        }
    }

    public func flush() throws(DeviceError) {
        flushing.lock()
        defer { flushing.unlock() }
        while !isDirect && !underWay.isEmpty { flushing.wait() }
        try expectWhole()
        begun += 1
        let number = begun
        underWay.append(number)
        flushing.unlock()
        let failed: DeviceError?
        do throws(DeviceError) {
            try synchronize()
            failed = nil
        } catch { failed = error }
        flushing.lock()
        underWay.removeAll { $0 == number }
        isBroken = isBroken || failed != nil
        flushing.broadcast()
        if let failed { throw failed }
        // Not those that begin from here on.
        let last = begun
        while !isBroken && underWay.contains(where: { $0 <= last }) { flushing.wait() }
        try expectWhole()
    }

    private func expectWhole() throws(DeviceError) {
        guard !isBroken else { throw DeviceError(.flush, errno: EIO, "\(name): flush: an earlier one failed") }
    }

    private func synchronize() throws(DeviceError) {
        var status: Int32
        repeat { status = fdatasync(descriptor) } while status < 0 && errno == EINTR
        guard status == 0 else { throw Self.error(.flush, name, ": flush") }
    }

    public func provide(_ block: BlockNumber, count: UInt64) throws(DeviceError) {
        guard !isBlockDevice else { return }
        // FALLOC_FL_KEEP_SIZE: the image keeps its size; only backing is added.
        var status: Int32
        repeat {
            status = daybook_fallocate(descriptor, 1, Int64(block.value) << 12, Int64(count) << 12)
        } while status < 0 && errno == EINTR
        guard status == 0 || errno == EOPNOTSUPP else { throw Self.error(.allocate, name, ": backing for \(block)") }
    }

    public func discard(_ block: BlockNumber, count: UInt64) {
        guard !isBlockDevice else { return }
        // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE; only a hint, so a refusal is no error.
        _ = daybook_fallocate(descriptor, 3, Int64(block.value) << 12, Int64(count) << 12)
    }
}
