// InodeTable: what has to be known of every inode until all names have been seen: 40 bytes each, in the order of their numbers.

import Format

struct InodeTable {
    struct Entry {
        let number: UInt64
        /// As the inode's item says; of a directory replaced by the directory that was found to hold its name.
        var parent: UInt64
        let parentEntry: UInt64
        let links: UInt32
        /// Names seen.
        var names: UInt32
        /// Of a directory: subdirectories seen.
        var children: UInt32
        let kind: UInt8
        var flags: UInt8

        /// A name was found where the inode's note says that there is one.
        static let hintMet: UInt8 = 1
        static let reached: UInt8 = 2
        static let visiting: UInt8 = 4

        var isDirectory: Bool { kind == FileKind.directory.rawValue }
    }

    private(set) var entries = ContiguousArray<Entry>()

    mutating func reserve(_ count: UInt64) { entries.reserveCapacity(Int(clamping: min(count, 50_000_000))) }

    /// Numbers must ascend.
    mutating func append(_ entry: Entry) { entries.append(entry) }

    func index(of number: UInt64) -> Int? {
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].number < number { low = middle + 1 } else { high = middle }
        }
        return low < entries.count && entries[low].number == number ? low : nil
    }

    subscript(index: Int) -> Entry {
        get { entries[index] }
        _modify { yield &entries[index] }
    }
    var count: Int { entries.count }
}

/// A directory entry, remembered until its inode is known: 24 bytes.
struct RememberedName {
    let directory: UInt64
    let offset: UInt64
    /// Type in the upper byte, inode number below.
    let target: UInt64

    init(directory: UInt64, offset: UInt64, inode: UInt64, kind: UInt8) {
        self.directory = directory
        self.offset = offset
        target = UInt64(kind) << 56 | inode
    }
    var inode: UInt64 { target & (1 << 56 - 1) }
    var kind: UInt8 { UInt8(target >> 56) }
}
