// FilesCheck: the newest checkpoint's tree, item by item. Keys keep all of an inode together, so one pass with one inode at a time
// in hand checks everything about it but its names (NamesCheck).
//
//   orphan items │ inode 1: attributes, xattrs, entries, extents, pieces │ inode 2: …

import Device
import Format
import Memory

extension Checker {
    func checkFiles() throws(Cancelled) {
        let checkpoint = superblock.checkpoint
        inodes.reserve(min(checkpoint.inodes, superblock.blockCount * 32))
        let pass = FilesPass(self)
        let walk = mainWalk()
        walk.claim = { [unowned self] reference, _ in
            if reference.birth > checkpoint.sequence {
                found(.bornLater, "a node of the tree born at \(reference.birth)", block: reference.address)
            }
            guard claim(reference.address, 1, "a node of the tree") else { return false }
            liveNodes.insert(reference.address.value, 1)
            return true
        }
        walk.problem = { [unowned self] reference, problem in
            pass.isComplete = false
            switch problem {
            case .damaged(let text): found(.nodeDamaged, text, block: reference.address)
            case .order(let text): found(.nodeOrder, text, block: reference.address)
            }
        }
        let expected = Double(max(checkpoint.inodes, 1))
        walk.leaf = { [unowned self] page, range in
            for index in range { pass.take(NodeLayout.key(page, index), NodeLayout.value(page, index)) }
            progress(.files, min(1, Double(inodes.count) / expected))
        }
        try walk.walk(checkpoint.root, level: checkpoint.rootLevel)
        pass.finish()
        remembered = pass.names
        namesOverflow = pass.overflow
        treeIsComplete = pass.isComplete
        if !treeIsComplete { ownersAreMissing = true }
    }

    func mainWalk() -> NodeWalk {
        NodeWalk(device: device, kind: .main, id: superblock.id, isCancelled: isCancelled)
    }
}

/// Bytes in numbered pieces under one inode number.
private struct PieceRun {
    var count: UInt64 = 0
    var bytes = 0
    var isSound = true
    var lastLength = Piece.size

    mutating func take(_ index: UInt64, _ length: Int) {
        if index != count || length == 0 || length > Piece.size || lastLength != Piece.size { isSound = false }
        count += 1
        bytes += length
        lastLength = length
    }
}

/// Names under one directory or inode, in key order: their hashes and that none is there twice.
private struct NameRun {
    private var base: UInt64 = 0
    private var names: [[UInt8]] = []
    enum Verdict { case good, misplaced, twice }

    mutating func take(_ offset: UInt64, _ name: RawBytes, seed: HashSeed) -> Verdict {
        let base = NameHash.offset(name, seed: seed)
        if base != self.base {
            self.base = base
            names.removeAll(keepingCapacity: true)
        }
        guard offset >= base, offset - base < NameHash.ordinals else { return .misplaced }
        let bytes = name.array
        if names.contains(bytes) { return .twice }
        names.append(bytes)
        return .good
    }
}

private final class FilesPass {
    unowned let checker: Checker
    private let seed: HashSeed
    private let sequence: SequenceNumber
    var isComplete = true

    var names: [RememberedName] = []
    var overflow = false

    // The inode in hand.
    private var number: UInt64?
    private var item: InodeItem?
    private var entries: UInt64 = 0
    private var xattrs: UInt64 = 0
    private var blocks: UInt64 = 0
    private var extentEnd: UInt64 = 0
    private var dataEnd: UInt64 = 0
    private var pieces = PieceRun()
    private var run = NameRun()

    /// Large attribute values: the number their pieces are under, the length due, and whose they are.
    private var values: [UInt64: (length: Int, inode: UInt64)] = [:]
    /// Access control lists that are held in pieces.
    private var lists: [(name: [UInt8], owner: UInt64, inode: UInt64, isDirectory: Bool)] = []
    /// Pieces under numbers that no attribute has named so far.
    private var loose: [UInt64: PieceRun] = [:]
    private var highest: UInt64 = 0
    private var dataBlocks: UInt64 = 0
    private let data: DataReader?

    init(_ checker: Checker) {
        self.checker = checker
        seed = checker.superblock.seed
        sequence = checker.superblock.checkpoint.sequence
        data = checker.options.verifyData ? DataReader(checker) : nil
    }

    func take(_ key: Key, _ value: RawBytes) {
        let inode = key.high >> 8
        if inode != number {
            close()
            begin(inode)
        }
        switch ItemType(rawValue: key.type) {
        case .orphan where inode == 0:
            guard value.count == 0 else { return misplaced(key, value) }
            checker.orphans[key.low] = false
        case .inode where inode != 0 && key.low == 0: takeInode(inode, value)
        case .xattr where item != nil: takeXattr(inode, key.low, value)
        case .entry where item?.isDirectory == true: takeEntry(inode, key.low, value)
        case .extent where item?.isRegular == true: takeExtent(inode, key, value)
        case .piece where inode != 0: pieces.take(key.low, value.count)
        default: misplaced(key, value)
        }
    }

    private func misplaced(_ key: Key, _ value: RawBytes) {
        checker.found(.itemMisplaced, "item of type \(key.type) at \(key.low), \(value.count) bytes", inode: key.high >> 8)
    }

    // MARK: one inode

    private func begin(_ inode: UInt64) {
        number = inode
        item = nil
        (entries, xattrs, blocks, extentEnd, dataEnd) = (0, 0, 0, 0, 0)
        pieces = PieceRun()
        run = NameRun()
    }

    private func takeInode(_ inode: UInt64, _ value: RawBytes) {
        highest = max(highest, inode)
        do throws(FormatError) { try InodeItem.validate(value, inode: InodeNumber(inode)) } catch {
            checker.found(.inodeMalformed, error.description, inode: inode)
            isComplete = false
            return
        }
        let item = InodeItem(value)
        self.item = item
        func wrong(_ what: String) { checker.found(.inodeMalformed, what, inode: inode) }
        if item.mode & ~0o177777 != 0 { wrong("mode \(String(item.mode, radix: 8))") }
        if item.flags != 0 { wrong("unknown flags \(hex(item.flags))") }
        if item.isRegular && item.length > Limit.fileSize { wrong("a length of \(item.length) bytes") }
        if !item.isRegular && item.blocks != 0 { wrong("\(item.blocks) blocks, though not a regular file") }
        if item.links > Limit.links { wrong("\(item.links) links") }
        if inode == 1 && !item.isDirectory { wrong("the root is not a directory") }
        checker.inodes.append(
            InodeTable.Entry(
                number: inode, parent: item.parent.value, parentEntry: item.parentEntry, links: item.links, names: 0, children: 0,
                kind: item.kind.rawValue, flags: 0))
        checker.report.inodes += 1
        if item.isDirectory { checker.report.directories += 1 }
    }

    private func close() {
        guard let inode = number else { return }
        guard let item else {
            // A number without attributes: pieces of a large attribute's value, or nothing that could be.
            if pieces.count > 0 { takeLoose(inode) }
            return
        }
        if item.xattrs != UInt32(clamping: xattrs) {
            checker.found(.xattrCount, "\(item.xattrs) extended attributes, but there are \(xattrs)", inode: inode)
        }
        if item.isDirectory && item.length != entries {
            checker.found(.directoryLength, "\(item.length) entries, but there are \(entries)", inode: inode)
        }
        if item.isRegular {
            if item.blocks != blocks { checker.found(.inodeBlocks, "\(item.blocks) blocks, but its extents hold \(blocks)", inode: inode) }
            let end = (item.length &+ UInt64(blockSize) &- 1) >> UInt64(blockShift)
            // A file being trimmed has an orphan item; so has one that is being removed.
            if dataEnd > end && checker.orphans[inode] == nil {
                checker.found(.dataBeyondEnd, "\(item.length) bytes long, but holds data up to block \(dataEnd)", inode: inode)
            }
            data?.tail(of: inode, length: item.length)
        }
        if item.kind == .symlink {
            if !pieces.isSound || UInt64(pieces.bytes) != item.length || item.length == 0 || item.length > UInt64(Limit.symlinkTarget) {
                checker.found(.symlinkTarget, "a target of \(item.length) bytes, of which \(pieces.bytes) are there", inode: inode)
            }
        } else if pieces.count > 0 {
            checker.found(.piecesUnowned, "\(pieces.bytes) bytes in pieces under an inode that is no symbolic link", inode: inode)
        }
    }

    // MARK: extended attributes

    private func takeXattr(_ inode: UInt64, _ offset: UInt64, _ value: RawBytes) {
        xattrs += 1
        guard let xattr = XattrItem(value) else {
            return checker.found(.xattrMalformed, "extended attribute at \(offset), \(value.count) bytes", inode: inode)
        }
        if value.u8(at: 13) != 0 || value.u16(at: 14) != 0 || value.u64(at: 16) != 0 {
            checker.found(.xattrMalformed, "extended attribute '\(xattr.name.text)': reserved bytes are not zero", inode: inode)
        }
        switch run.take(offset, xattr.name, seed: seed) {
        case .good: break
        case .misplaced: checker.found(.xattrMalformed, "extended attribute '\(xattr.name.text)' does not belong at \(offset)", inode: inode)
        case .twice: checker.found(.xattrMalformed, "extended attribute '\(xattr.name.text)' is there twice", inode: inode)
        }
        if (xattr.pieces == .none) != (xattr.valueLength <= XattrItem.inlineValue) {
            checker.found(.xattrMalformed, "extended attribute '\(xattr.name.text)' of \(xattr.valueLength) bytes is in the wrong place", inode: inode)
        }
        guard xattr.pieces != .none else { return checkList(inode, xattr.name, xattr.inline, isDirectory: item?.isDirectory == true) }
        if StoredAccessControlList.names.contains(xattr.name.text) {
            lists.append((xattr.name.array, xattr.pieces.value, inode, item?.isDirectory == true))
        }
        highest = max(highest, xattr.pieces.value)
        if let run = loose.removeValue(forKey: xattr.pieces.value) {
            settle(run, xattr.valueLength, inode)
        } else if values.updateValue((xattr.valueLength, inode), forKey: xattr.pieces.value) != nil {
            checker.found(.xattrValue, "two extended attributes hold their value under number \(xattr.pieces)", inode: inode)
        }
    }

    private func checkList(_ inode: UInt64, _ name: RawBytes, _ value: RawBytes, isDirectory: Bool) {
        if StoredAccessControlList.isValid(name, value, isDirectory: isDirectory) { return }
        checker.found(.accessControlList, "'\(name.text)' of \(value.count) bytes", inode: inode)
    }

    /// Lists of more than 512 bytes: their values are elsewhere in the tree.
    private func checkLists() {
        let walk = checker.mainWalk()
        let checkpoint = checker.superblock.checkpoint
        for list in lists {
            var value: [UInt8] = []
            var index: UInt64 = 0
            while value.count <= 4096,
                let piece = walk.find(Key(InodeNumber(list.owner), .piece, index), root: checkpoint.root, level: checkpoint.rootLevel)
            {
                value += piece
                index += 1
            }
            list.name.withRawBytes { name in value.withRawBytes { checkList(list.inode, name, $0, isDirectory: list.isDirectory) } }
        }
    }

    private func takeLoose(_ owner: UInt64) {
        highest = max(highest, owner)
        if let value = values.removeValue(forKey: owner) { settle(pieces, value.length, value.inode) } else { loose[owner] = pieces }
    }

    private func settle(_ run: PieceRun, _ length: Int, _ inode: UInt64) {
        guard run.isSound, run.bytes == length else {
            return checker.found(.xattrValue, "an extended attribute's value of \(length) bytes, of which \(run.bytes) are there", inode: inode)
        }
    }

    // MARK: entries

    private func takeEntry(_ inode: UInt64, _ offset: UInt64, _ value: RawBytes) {
        entries += 1
        guard let entry = EntryItem(value), value.slice(10, 6).isZero else {
            return checker.found(.entryMalformed, "entry at \(offset), \(value.count) bytes", inode: inode)
        }
        let name = entry.name
        if !Self.isPossible(name) { checker.found(.entryMalformed, "the name '\(name.text)' is impossible", inode: inode) }
        switch run.take(offset, name, seed: seed) {
        case .good: break
        case .misplaced: checker.found(.entryOffset, "entry '\(name.text)' does not belong at \(offset)", inode: inode)
        case .twice: checker.found(.duplicateName, "the name '\(name.text)' is there twice", inode: inode)
        }
        guard entry.inode.value < Limit.inode else {
            return checker.found(.entryDangling, "entry '\(name.text)' leads to inode \(entry.inode)", inode: inode)
        }
        if names.count < Checker.entryLimit {
            names.append(RememberedName(directory: inode, offset: offset, inode: entry.inode.value, kind: entry.kind))
        } else {
            overflow = true
        }
    }

    static func isPossible(_ name: RawBytes) -> Bool {
        if name.u8(at: 0) == 0x2e, name.count == 1 || name.count == 2 && name.u8(at: 1) == 0x2e { return false }
        return !(0..<name.count).contains { name.u8(at: $0) == 0 || name.u8(at: $0) == 0x2f }
    }

    // MARK: extents

    private func takeExtent(_ inode: UInt64, _ key: Key, _ value: RawBytes) {
        do throws(FormatError) {
            try ExtentItem.validate(value, key: key, blockCount: checker.superblock.blockCount)
        } catch {
            isComplete = false
            return checker.found(.extentMalformed, error.description, inode: inode)
        }
        let extent = ExtentItem(value)
        let count = UInt64(extent.blocks)
        blocks += count
        dataBlocks += count
        if key.low < extentEnd { checker.found(.extentsOverlap, "two extents hold file block \(key.low)", inode: inode) }
        extentEnd = max(extentEnd, key.low + count)
        if !extent.isUnwritten { dataEnd = max(dataEnd, key.low + count) }
        if extent.birth > sequence { checker.found(.bornLater, "an extent born at \(extent.birth)", block: extent.start, inode: inode) }
        // What is set aside is never shared; and, as it has no CRCs, a few bytes may claim a whole image, again and again.
        guard extent.isUnwritten
            ? checker.claim(extent.start, count, "file data", inode: inode)
            : checker.claimData(extent.start, count, inode: inode)
        else { return }
        checker.liveData.insert(extent.start.value, count)
        if let data, !extent.isUnwritten { data.verify(extent, value, at: key.low, inode) }
    }

    // MARK: the end

    func finish() {
        close()
        guard isComplete else { return }
        checker.checkShares()
        checkLists()
        for (owner, value) in values.sorted(by: { $0.key < $1.key }) {
            checker.found(.xattrValue, "an extended attribute's value of \(value.length) bytes, due under number \(owner), is missing", inode: value.inode)
        }
        for (owner, run) in loose.sorted(by: { $0.key < $1.key }) {
            checker.found(.piecesUnowned, "\(run.bytes) bytes in pieces under number \(owner)")
        }
        let checkpoint = checker.superblock.checkpoint
        if checkpoint.inodes != checker.report.inodes {
            checker.found(.inodeCount, "the checkpoint counts \(checkpoint.inodes) inodes, there are \(checker.report.inodes)")
        }
        checker.report.dataBlocks = dataBlocks
        if checkpoint.dataBlocks != dataBlocks {
            checker.found(.dataBlockCount, "the checkpoint counts \(checkpoint.dataBlocks) data blocks, there are \(dataBlocks)")
        }
        if checkpoint.nextInode <= highest {
            checker.found(.nextInode, "the next inode number is to be \(checkpoint.nextInode), but \(highest) is in use")
        }
    }
}

/// Reads data and compares it with its checksums.
private final class DataReader {
    unowned let checker: Checker
    private let buffer = AlignedBuffer(count: Int(ExtentItem.maximumBlocks) << blockShift, zeroed: false)
    // The block last read of the file in hand, for its end.
    private var last: (inode: UInt64, fileBlock: UInt64, page: RawBytes)?

    init(_ checker: Checker) { self.checker = checker }

    func verify(_ extent: ExtentItem, _ value: RawBytes, at fileBlock: UInt64, _ inode: UInt64) {
        let count = Int(extent.blocks)
        let bytes = buffer.bytes.slice(0, count << blockShift)
        let whole = (try? checker.device.read(extent.start, into: bytes)) != nil
        for index in 0..<count {
            let block = extent.start + UInt64(index)
            let page = bytes.slice(index << blockShift, blockSize)
            let offset = (fileBlock + UInt64(index)) << UInt64(blockShift)
            if !whole {
                do throws(DeviceError) { try checker.device.read(block, into: page) } catch {
                    checker.found(.dataDamaged, "offset \(offset): \(error.description)", block: block, inode: inode)
                    continue
                }
            }
            let sum = page.crc32c()
            let expected = ExtentItem.crc(value, index)
            if sum != expected {
                checker.found(.dataDamaged, "offset \(offset): checksum \(hex(sum)), expected \(hex(expected))", block: block, inode: inode)
            }
        }
        last = (inode, fileBlock + UInt64(count) - 1, bytes.slice((count - 1) << blockShift, blockSize))
    }

    /// What lies behind a file's end must be zero: it would come to light when the file grows.
    func tail(of inode: UInt64, length: UInt64) {
        let within = Int(length & UInt64(blockSize - 1))
        guard within != 0, let last, last.inode == inode, last.fileBlock == length >> UInt64(blockShift) else { return }
        if !last.page.from(within).isZero {
            checker.found(.tailNotZero, "its last block holds something behind its \(length) bytes", inode: inode)
        }
    }
}
