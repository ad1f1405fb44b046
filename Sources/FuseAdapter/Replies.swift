// From the volume's types to libfuse's. All on the stack: nothing here allocates or counts references.

import CFuseShim
import Format
import Glibc
import Memory
import Volume

/// How long the kernel may trust what it was told: for good, since nobody else changes the data.
let cacheSeconds = 365.0 * 86400

/// A name or a target, as libfuse passes it.
@inline(__always) func bytes(_ text: UnsafePointer<CChar>) -> RawBytes {
    RawBytes(base: UnsafeMutableRawPointer(mutating: text), count: strlen(text))
}

@inline(__always) func caller(_ request: fuse_req_t) -> Caller {
    let context = fuse_req_ctx(request).pointee
    return Caller(uid: context.uid, gid: context.gid, pid: UInt32(bitPattern: context.pid), umask: context.umask)
}

extension timespec {
    /// Times before 1970 count nanoseconds up from the second before.
    @inline(__always) init(_ time: Timestamp) {
        var seconds = time.nanoseconds / 1_000_000_000
        var rest = time.nanoseconds % 1_000_000_000
        if rest < 0 {
            rest += 1_000_000_000
            seconds -= 1
        }
        self.init(tv_sec: Int(seconds), tv_nsec: Int(rest))
    }

    /// The nearest time that the format can hold.
    var timestamp: Timestamp {
        let (product, high) = Int64(tv_sec).multipliedReportingOverflow(by: 1_000_000_000)
        let (sum, over) = product.addingReportingOverflow(Int64(tv_nsec))
        guard !high && !over else { return Timestamp(nanoseconds: tv_sec < 0 ? .min : .max) }
        return Timestamp(nanoseconds: sum)
    }
}

/// For UTIME_NOW, which the kernel leaves to the server.
func currentTime() -> Timestamp {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return now.timestamp
}

extension stat {
    @inline(__always) init(_ attributes: Attributes) {
        self.init()
        let item = attributes.item
        st_ino = UInt(attributes.inode.value)
        st_mode = item.mode
        st_nlink = UInt(item.links)
        st_uid = item.uid
        st_gid = item.gid
        st_rdev = UInt(item.device)
        st_size = Int(truncatingIfNeeded: item.length)
        st_blksize = blockSize
        // Of 512 bytes, whatever the block size.
        st_blocks = Int(truncatingIfNeeded: item.blocks &* 8)
        st_atim = timespec(item.accessed)
        st_mtim = timespec(item.modified)
        st_ctim = timespec(item.changed)
    }
}

extension fuse_entry_param {
    @inline(__always) init(_ attributes: Attributes) {
        self.init()
        ino = attributes.inode.value
        // Inode numbers are never reused, so one generation is enough for file handles to be unique.
        generation = 1
        attr = stat(attributes)
        attr_timeout = cacheSeconds
        entry_timeout = cacheSeconds
    }

    /// "There is no such name", for the kernel to remember.
    static var negative: fuse_entry_param {
        var entry = fuse_entry_param()
        entry.entry_timeout = cacheSeconds
        return entry
    }
}

extension Unmanaged {
    /// Calls `body` without counting references; whoever made this value keeps the instance alive.
    @inline(__always) func lend<R, E: Error>(_ body: (Instance) throws(E) -> R) throws(E) -> R {
        try _withUnsafeGuaranteedRef { instance -> Result<R, E> in
            do throws(E) { return .success(try body(instance)) } catch { return .failure(error) }
        }.get()
    }
}
