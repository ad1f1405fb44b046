// DigestSource: a tree as the digest sees it. Two kinds exist: a view of an image, and a directory of the running system.

public import Format
public import Memory

public struct DigestError: Error, Sendable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// What counts of a file besides its contents.
public struct DigestNode: Sendable {
    public var kind: FileKind
    /// Type and permission bits as in stat(2).
    public var mode: UInt32
    public var uid: UInt32
    public var gid: UInt32
    /// Of devices.
    public var major: UInt32 = 0
    public var minor: UInt32 = 0
    public var size: UInt64
    /// Equal for two names if and only if they lead to the same file.
    public var identity: FileIdentity
    /// It may be met again by another name.
    public var isShared: Bool

    public init(
        kind: FileKind, mode: UInt32, uid: UInt32, gid: UInt32, size: UInt64, identity: FileIdentity, isShared: Bool
    ) {
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.identity = identity
        self.isShared = isShared
    }
}

public struct FileIdentity: Hashable, Sendable {
    public let filesystem: UInt64
    public let inode: UInt64
    public init(filesystem: UInt64, inode: UInt64) {
        self.filesystem = filesystem
        self.inode = inode
    }
}

/// Names of one directory, held in one piece: a directory may have millions.
public struct NameList {
    private struct Entry {
        var start: UInt32
        var length: UInt16
        /// For the source.
        var token: UInt64
    }
    private var bytes: [UInt8] = []
    private var entries: [Entry] = []
    public var count: Int { entries.count }

    public init() {}

    public mutating func append(_ name: RawBytes, token: UInt64) throws(DigestError) {
        guard bytes.count + name.count <= UInt32.max else { throw DigestError("a directory's names take more than 4 GiB") }
        entries.append(Entry(start: UInt32(bytes.count), length: UInt16(name.count), token: token))
        bytes += UnsafeRawBufferPointer(start: name.pointer, count: name.count)
    }

    public subscript(index: Int) -> (name: [UInt8], token: UInt64) {
        let entry = entries[index]
        return (Array(bytes[Int(entry.start)..<Int(entry.start) + Int(entry.length)]), entry.token)
    }

    /// Puts the names in the order of their bytes.
    mutating func sort() {
        let all = bytes
        all.withRawBytes { all in
            entries.sort {
                all.slice(Int($0.start), Int($0.length)).compared(to: all.slice(Int($1.start), Int($1.length))) < 0
            }
        }
    }
}

public protocol DigestSource: AnyObject {
    /// A file met on the way; a directory's is kept until its entries are done.
    associatedtype File

    func root() throws(DigestError) -> (node: DigestNode, file: File)
    func names(_ directory: File) throws(DigestError) -> NameList
    func child(_ directory: File, _ name: [UInt8], token: UInt64) throws(DigestError) -> (node: DigestNode, file: File)
    /// In any order.
    func xattrs(_ file: File) throws(DigestError) -> [(name: [UInt8], value: [UInt8])]
    func target(_ symlink: File) throws(DigestError) -> [UInt8]
    /// Gives the file's bytes in ascending pieces that begin at multiples of the block size and, but for the last, end at one.
    /// What is known to be zero may be left out.
    func contents(_ file: File, size: UInt64, _ body: (UInt64, RawBytes) -> Void) throws(DigestError)
}
