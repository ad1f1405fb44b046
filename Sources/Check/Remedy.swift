// Remedy: what a repair does about each finding, and what is lost by it (Docs/FSCK.md has it as a table).

extension FindingCode {
    /// What a repair does.
    public var remedy: String {
        switch self {
        case .slotDamaged:
            "Written anew from the other slot. With both lost: from the copy in the last block, the newest checkpoint found on "
                + "the medium and the journal."
        case .identityDamaged, .identityDiffers:
            "Written anew from the superblock."
        case .slotsDisagree, .superblockContradiction:
            "Both slots and the index are made anew from the newest slot."
        case .markedDamaged:
            "The mark is taken away once a check finds nothing."
        case .spaceNodeDamaged, .spaceNodeOrder, .spaceItemMalformed:
            "The space state is made anew from the trees, the dead lists and the journal. Checkpoints that the index no longer "
                + "names are looked for on all of the medium."
        case .regionMissing, .bitmapDamaged, .regionFreeCount, .chunkItem, .pendingList, .historyCount, .blockUsedButFree,
            .blockLeaked, .shareCount:
            "The space state is made anew from the trees, the dead lists and the journal."
        case .checkpointItem, .checkpointPosition:
            "The checkpoint is made anew from one before it and the journal."
        case .chunkHeader:
            "Made anew from the frame behind it."
        case .frameUnreadable, .recordMalformed:
            "Before the newest checkpoint: history that leads through it is given up. Behind it: the journal is cut off there."
        case .journalContinues:
            "What follows is replayed, as far as it fits."
        case .recoveryImpossible:
            "Replayed from an older checkpoint; if that fails as well, the journal is cut off where it fails."
        case .nodeDamaged, .nodeOrder:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the tree without the node, files without a name in lost+found."
        case .itemMisplaced, .piecesUnowned, .orphanItem:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the item is removed."
        case .inodeMalformed:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the attributes are made anew: owner root, mode 0600."
        case .extentMalformed, .extentsOverlap, .blockOutside:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the extent is removed; the place reads as zeros."
        case .dataBeyondEnd:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: what lies behind the end is cut off."
        case .inodeBlocks, .xattrCount, .bornLater, .inodeCount, .dataBlockCount, .nextInode, .entryKind, .linkCount,
            .directoryLength, .directoryLinks, .directoryParent, .nameHint:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: counted anew."
        case .symlinkTarget:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the symbolic link is removed."
        case .xattrMalformed, .xattrValue:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the attribute is removed."
        case .dataDamaged:
            "None: nothing holds the data once more. Reading that block stays an error (EIO), that of the rest of the file "
                + "works. Overwriting it, or restoring the file from a past state, ends the error."
        case .tailNotZero:
            "None."
        case .accessControlList:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the list is removed; the mode alone counts."
        case .entryMalformed, .entryOffset, .duplicateName, .entryDangling, .directoryNames:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: the name is removed, what it led to is found in lost+found."
        case .directoryLoop, .unnamedInode:
            "The tree is made anew from the nearest older checkpoint that is whole and the journal behind it. If the journal "
                + "does not lead there: found in lost+found."
        case .blockShared:
            "Counted as shared if both are file data; the checksums tell whose it is. Else as E405."
        case .deadListDamaged, .deadEntry, .deadBlockInUse, .deadCounts:
            "Made anew, with the checkpoints behind it, from the one before it and the journal."
        case .pastNodeDamaged, .pastNodeUncovered, .pastDataUncovered:
            "The checkpoint and those behind it are made anew from one before it and the journal."
        }
    }

    /// What is lost by it.
    public var loss: String {
        switch self {
        case .slotDamaged:
            "Nothing. With both lost: settings made after mkfs."
        case .identityDamaged, .identityDiffers, .slotsDisagree, .markedDamaged, .superblockContradiction, .regionMissing,
            .bitmapDamaged, .regionFreeCount, .checkpointItem, .chunkItem, .pendingList, .historyCount, .checkpointPosition,
            .tailNotZero, .blockUsedButFree, .blockLeaked, .shareCount:
            "Nothing."
        case .spaceNodeDamaged, .spaceNodeOrder, .spaceItemMalformed:
            "Nothing, unless a checkpoint is found nowhere: then history before the oldest one found."
        case .chunkHeader:
            "Nothing. If that frame is damaged too: as E302."
        case .frameUnreadable, .recordMalformed:
            "Past states up to the next checkpoint. Behind the newest one: what was done from there on."
        case .journalContinues:
            "What does not fit."
        case .recoveryImpossible:
            "Nothing; or what was done from there on."
        case .nodeDamaged, .nodeOrder:
            "Nothing; or what the node held, by inode and path, and history."
        case .itemMisplaced, .piecesUnowned:
            "Nothing; or the item, and history."
        case .inodeMalformed:
            "Nothing; or the attributes, and history."
        case .extentMalformed, .extentsOverlap, .blockOutside:
            "Nothing; or the data there, by path and offset, and history."
        case .dataBeyondEnd:
            "Nothing; or what lies behind the end, and history."
        case .inodeBlocks, .xattrCount, .bornLater, .inodeCount, .dataBlockCount, .nextInode, .entryKind, .linkCount,
            .directoryLength, .directoryLinks, .directoryParent, .directoryLoop, .unnamedInode, .orphanItem, .nameHint:
            "Nothing; or history."
        case .symlinkTarget:
            "Nothing; or the link, by path, and history."
        case .xattrMalformed, .xattrValue:
            "Nothing; or the attribute, by name and path, and history."
        case .dataDamaged:
            "The block, by path and offset."
        case .accessControlList:
            "Nothing; or the list, by path, and history."
        case .entryMalformed, .entryOffset, .duplicateName, .entryDangling, .directoryNames:
            "Nothing; or the name, and history."
        case .blockShared:
            "Nothing beyond what was overwritten."
        case .deadListDamaged, .deadEntry, .deadBlockInUse, .deadCounts:
            "Nothing; or, if the journal has a gap, history."
        case .pastNodeDamaged, .pastNodeUncovered, .pastDataUncovered:
            "Nothing; or, if there is none, history up to there."
        }
    }
}
