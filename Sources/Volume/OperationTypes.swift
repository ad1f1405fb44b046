// What operations take and return.

public import Format
public import Memory

/// Who asks: recorded with each change.
public struct Caller: Sendable {
    public let uid: UInt32
    public let gid: UInt32
    public let pid: UInt32
    /// Permissions that files made by it do not get, unless a default access control list says what they get.
    public let umask: UInt32
    public init(uid: UInt32, gid: UInt32, pid: UInt32, umask: UInt32 = 0) {
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.umask = umask
    }
    /// Daybook's own housekeeping.
    public static let housekeeping = Caller(uid: 0, gid: 0, pid: 0)
}

public struct Attributes: Sendable {
    public let inode: InodeNumber
    public let item: InodeItem
    public init(inode: InodeNumber, item: InodeItem) {
        self.inode = inode
        self.item = item
    }
}

/// What setattr is to change; nil leaves a thing as it is.
public struct AttributeChange: Sendable {
    public var mode: UInt32?
    public var uid: UInt32?
    public var gid: UInt32?
    public var size: UInt64?
    public var accessed: Timestamp?
    public var modified: Timestamp?
    /// The kernel wants suid and sgid cleared with this change.
    public var killPrivileges = false
    public init() {}
}

/// One entry of a listing.
public struct DirectoryEntry {
    public let name: RawBytes
    public let inode: InodeNumber
    /// Type bits as in `dirent.d_type` (mode >> 12).
    public let kind: UInt8
    /// Pass it as `from` to go on after this entry. Stable: an entry keeps its offset for its life.
    public let offset: UInt64
    /// Set when asked for, except for `.` and `..`.
    public let attributes: Attributes?
}

/// What statfs(2) reports, in blocks of 4 KiB.
public struct Statistics: Sendable {
    public var blocks: UInt64 = 0
    /// Free, or held by nothing but history (which gives way).
    public var free: UInt64 = 0
    public var available: UInt64 = 0
    public var inodes: UInt64 = 0
    public var freeInodes: UInt64 = 0
}

public enum RenameFlags {
    public static let noReplace: UInt32 = 1
    public static let exchange: UInt32 = 2
    public static let whiteout: UInt32 = 4
}

public enum SeekTarget: Sendable { case data, hole }

/// Reading updates access times: never, or when they are older than the last change or a day.
public enum AccessTimePolicy: Sendable { case never, relative, always }

/// A point in the history.
public enum Point: Sendable, Equatable {
    case sequence(SequenceNumber)
    /// The last sequence whose commit time is not later.
    case time(Timestamp)
}

public struct OpenOptions: Sendable {
    public enum Mode: Sendable, Equatable {
        case readWrite
        /// Newest state; writes nothing to the image, not even recovery.
        case readOnly
        /// Read-only at a past point.
        case at(Point)
    }
    public var mode: Mode = .readWrite
    /// Memory for tree nodes and data pages, in bytes.
    public var cacheBytes = 96 << 20
    /// Longest time that a change waits for its commit.
    public var commitSeconds = 5.0
    public var accessTimes: AccessTimePolicy = .relative
    /// POSIX access control lists are enforced (by the kernel), kept in step with modes, and inherited.
    public var accessControlLists = true
    public init() {}
}

/// Things that a user of the mount should be told; the daemon logs them.
public enum VolumeEvent: Sendable {
    case notice(String)
    case warning(String)
    /// The volume has turned read-only; the text says why.
    case failure(String)
}
