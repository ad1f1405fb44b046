// Finding: what the checker can find, each kind with a number that never changes its meaning (Docs/FSCK.md lists them all).
//
//   E1xx superblocks    E2xx space state    E3xx journal    E4xx files    E5xx names    E6xx blocks    E7xx history

public import Format

public enum FindingCode: UInt16, Sendable, CaseIterable, Comparable {
    case slotDamaged = 101
    case identityDamaged = 102
    case identityDiffers = 103
    case slotsDisagree = 104
    case markedDamaged = 105
    case superblockContradiction = 106

    case spaceNodeDamaged = 201
    case spaceNodeOrder = 202
    case spaceItemMalformed = 203
    case regionMissing = 204
    case bitmapDamaged = 205
    case regionFreeCount = 206
    case checkpointItem = 207
    case chunkItem = 208
    case pendingList = 209
    case historyCount = 210

    case chunkHeader = 301
    case frameUnreadable = 302
    case recordMalformed = 303
    case checkpointPosition = 304
    case journalContinues = 305
    case recoveryImpossible = 306

    case nodeDamaged = 401
    case nodeOrder = 402
    case itemMisplaced = 403
    case inodeMalformed = 404
    case extentMalformed = 405
    case extentsOverlap = 406
    case dataBeyondEnd = 407
    case inodeBlocks = 408
    case symlinkTarget = 409
    case xattrMalformed = 410
    case xattrCount = 411
    case xattrValue = 412
    case piecesUnowned = 413
    case bornLater = 414
    case inodeCount = 415
    case dataBlockCount = 416
    case nextInode = 417
    case dataDamaged = 418
    case tailNotZero = 419
    case accessControlList = 420

    case entryMalformed = 501
    case entryOffset = 502
    case duplicateName = 503
    case entryDangling = 504
    case entryKind = 505
    case linkCount = 506
    case directoryLength = 507
    case directoryLinks = 508
    case directoryParent = 509
    case directoryNames = 510
    case directoryLoop = 511
    case unnamedInode = 512
    case orphanItem = 513
    case nameHint = 514

    case blockShared = 601
    case blockUsedButFree = 602
    case blockLeaked = 603
    case blockOutside = 604
    case shareCount = 605

    case deadListDamaged = 701
    case deadEntry = 702
    case deadBlockInUse = 703
    case deadCounts = 704
    case pastNodeDamaged = 705
    case pastNodeUncovered = 706
    case pastDataUncovered = 707

    /// `E101`
    public var label: String { "E\(rawValue)" }

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }

    /// What it means, for the table in Docs/FSCK.md.
    public var meaning: String {
        switch self {
        case .slotDamaged: "A superblock slot is damaged; the other one is valid."
        case .identityDamaged: "The copy of identity and geometry in the last block is damaged."
        case .identityDiffers: "The copy of identity and geometry is that of another filesystem."
        case .slotsDisagree: "The two superblock slots contradict each other."
        case .markedDamaged: "The filesystem is marked as damaged."
        case .superblockContradiction: "The superblock and the index of checkpoints contradict each other."
        case .spaceNodeDamaged: "A node of the space tree cannot be read or is not what its parent says."
        case .spaceNodeOrder: "A node of the space tree holds keys that belong elsewhere."
        case .spaceItemMalformed: "An item of the space tree is of an unknown kind or malformed."
        case .regionMissing: "A region of the image has no bitmap, or a bitmap belongs to no region."
        case .bitmapDamaged: "A bitmap of used blocks cannot be read or is not what its region says."
        case .regionFreeCount: "A region's number of free blocks is not that of its bitmap."
        case .checkpointItem: "A checkpoint's item is malformed or out of order."
        case .chunkItem: "A journal chunk's item is malformed, misplaced or missing."
        case .pendingList: "The list of blocks that only the other slot needs is damaged."
        case .historyCount: "The number of blocks held by history is wrong."
        case .chunkHeader: "The header of a journal chunk is missing, damaged, or not the one due."
        case .frameUnreadable: "A frame of the retained journal is missing or damaged."
        case .recordMalformed: "A record of the retained journal is malformed or out of sequence."
        case .checkpointPosition: "The journal has no frame boundary where a checkpoint says that it goes on."
        case .journalContinues: "The journal goes on behind a checkpoint that is marked as clean."
        case .recoveryImpossible: "The journal cannot be replayed."
        case .nodeDamaged: "A node of the tree cannot be read or is not what its parent says."
        case .nodeOrder: "A node of the tree holds keys that belong elsewhere."
        case .itemMisplaced: "An item of the tree is of an unknown kind, or belongs to no inode that could have it."
        case .inodeMalformed: "An inode's attributes are malformed."
        case .extentMalformed: "An extent is malformed or lies outside of the image."
        case .extentsOverlap: "Two extents of a file overlap."
        case .dataBeyondEnd: "A file has data behind its end."
        case .inodeBlocks: "An inode's number of blocks is not that of its extents."
        case .symlinkTarget: "The target of a symbolic link is missing in part or malformed."
        case .xattrMalformed: "An extended attribute is malformed, misplaced, or there twice."
        case .xattrCount: "An inode's number of extended attributes is wrong."
        case .xattrValue: "The value of a large extended attribute is missing in part or malformed."
        case .piecesUnowned: "Pieces of a value belong to no attribute."
        case .bornLater: "Something was born after the checkpoint that holds it."
        case .inodeCount: "The checkpoint's number of inodes is wrong."
        case .dataBlockCount: "The checkpoint's number of data blocks is wrong."
        case .nextInode: "The next inode number to be given is in use already."
        case .dataDamaged: "A block of file data cannot be read or does not match its checksum (--data)."
        case .tailNotZero: "A file's last block is not zero behind the file's end (--data)."
        case .accessControlList: "An access control list is malformed, or a default one belongs to no directory."
        case .entryMalformed: "A directory entry is malformed or its name is impossible."
        case .entryOffset: "A directory entry does not lie where its name belongs."
        case .duplicateName: "A directory has the same name twice."
        case .entryDangling: "A directory entry leads to an inode that does not exist."
        case .entryKind: "A directory entry and its inode are of different types."
        case .linkCount: "An inode's link count is not its number of names."
        case .directoryLength: "A directory's number of entries is wrong."
        case .directoryLinks: "A directory's link count is not 2 plus its subdirectories."
        case .directoryParent: "A directory's parent is not the directory that holds its name."
        case .directoryNames: "A directory has several names."
        case .directoryLoop: "A directory cannot be reached from the root."
        case .unnamedInode: "An inode has no name and is not an orphan."
        case .orphanItem: "An orphan item names no inode that could be an orphan."
        case .nameHint: "An inode's note of one of its names leads elsewhere."
        case .blockShared: "A block is used twice."
        case .blockUsedButFree: "A block in use is marked as free."
        case .blockLeaked: "A block marked as used belongs to nothing."
        case .blockOutside: "Something lies outside of the image or in its reserved blocks."
        case .shareCount: "A shared block is held by more or fewer extents than its count says."
        case .deadListDamaged: "A list of dead blocks cannot be read or is not what its checkpoint says."
        case .deadEntry: "An entry of a dead list is malformed or of another interval."
        case .deadBlockInUse: "A block in a dead list is still in use, or dead twice."
        case .deadCounts: "A dead list does not hold as much as its checkpoint says."
        case .pastNodeDamaged: "A node of a past tree cannot be read or is not what its parent says."
        case .pastNodeUncovered: "A node of a past tree is neither in the present one nor in a dead list: it may be overwritten."
        case .pastDataUncovered: "Data of a past tree is neither live nor in a dead list: it may be overwritten."
        }
    }
}

public struct Finding: Sendable, CustomStringConvertible {
    public let code: FindingCode
    public let text: String
    public let block: BlockNumber?
    public let inode: InodeNumber?
    /// Where it can be reached from the root, as far as known.
    public let path: [UInt8]?

    public init(_ code: FindingCode, _ text: String, block: BlockNumber? = nil, inode: InodeNumber? = nil, path: [UInt8]? = nil) {
        self.code = code
        self.text = text
        self.block = block
        self.inode = inode
        self.path = path
    }

    /// Without the path, whose bytes are the caller's to show.
    public var description: String {
        var place: [String] = []
        if let inode { place.append("inode \(inode)") }
        if let block { place.append("\(block)") }
        return "\(code.label) " + (place.isEmpty ? "" : place.joined(separator: ", ") + ": ") + text
    }
}
