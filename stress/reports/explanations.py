"""What each fault means for a client, and what an operator should look at."""

from dataclasses import dataclass

from stress.checks.outcome import Fault


@dataclass(frozen=True)
class Explanation:
    """A fault in words: a title, what it means for clients, and where its cause usually is."""

    title: str
    meaning: str
    look_at: str


EXPLANATIONS: dict[Fault, Explanation] = {
    Fault.INVALID_PICTURE: Explanation(
        "Picture unusable",
        "The picture cannot be decoded, has another size than was asked for, or is blank, black or of one colour.",
        "The replica's log around this job; numeric overflow (NaN) in the decoder; a proxy that cuts long answers. "
        "A prompt of a dark scene can be dark rightly: look at the thumbnail.",
    ),
    Fault.PARTIAL_PICTURE: Explanation(
        "Picture only partly rendered",
        "A part of the picture, usually the bottom, is black, grey, white, noise or repeated: "
        "it was read before it was finished.",
        "Device synchronisation before the copy to the host; files must be written under a temporary name and renamed.",
    ),
    Fault.MISSING_PICTURE: Explanation(
        "No picture",
        "The job is completed, but its callback or its download carries no picture.",
        "The folder or bucket for pictures: space, permissions, retention, and that every replica sees the same one.",
    ),
    Fault.SWAPPED_PICTURE: Explanation(
        "Another job's picture",
        "The job was answered with the picture of another job that ran at about the same time.",
        "State that concurrent jobs share: output names, buffers, random generators, the order of a batch's results.",
    ),
    Fault.STALE_PICTURE: Explanation(
        "An old picture",
        "The job was answered with a picture that an earlier job had already received.",
        "Files of an earlier job with the same id, caches in front of the service, output names that are used again.",
    ),
    Fault.WRONG_PICTURE: Explanation(
        "Not the picture of this request",
        "The same request, run alone, gave another picture: neighbours, an adapter or a lost seed changed it.",
        "Adapter weights left in place by another job, a random generator that jobs share, batching that alters bytes.",
    ),
    Fault.CHANGED_BYTES: Explanation(
        "The bytes differ by way",
        "Callback, download, image address and recorded SHA-256 do not agree on one and the same picture.",
        "Anything that encodes again or rewrites: proxies, image optimisers, a second writer of the same file.",
    ),
    Fault.REFUSED_SUBMIT: Explanation(
        "A valid job was refused",
        "The service did not accept a job that the protocol allows.",
        "The sentence in the finding; queue limits (429, 503), required credentials, limits on size or steps.",
    ),
    Fault.LOST_JOB: Explanation(
        "An accepted job is gone",
        "The service accepted the job and later does not know it.",
        "Restarts during the check, records in memory only, several server processes without a shared store.",
    ),
    Fault.LATE_JOB: Explanation(
        "A job was not final in time",
        "The job was still queued or running when its budget was over. Budgets grow with size, steps and jobs ahead.",
        "Queue length and the number of replicas; a device that hangs. For a slow device give a larger --poll-budget.",
    ),
    Fault.FAILED_JOB: Explanation(
        "A job failed",
        "A job that should give a picture ended as failed or timeout.",
        "The error in the finding, then the replica's log: memory of the device, missing weights, time limits.",
    ),
    Fault.WRONG_JOB_ID: Explanation(
        "Wrong job id",
        "An answer or a callback names another job than the one that was asked for.",
        "Where answers are matched to requests: caches, shared variables, a proxy that mixes answers.",
    ),
    Fault.DOUBLE_JOB: Explanation(
        "One submission became two jobs",
        "The same submission, repeated as after a broken connection, was taken as a second job.",
        "Handling of the Idempotency-Key header and of a job id that is in use (409).",
    ),
    Fault.MISSING_CALLBACK: Explanation(
        "No callback came",
        "The job ended and no callback arrived in time.",
        "Whether the service reaches the callback address: firewall, container network, its rules for "
        "private addresses. The job's callback section says what was tried.",
    ),
    Fault.DUPLICATE_CALLBACK: Explanation(
        "The same callback twice",
        "One and the same delivery attempt arrived more than once; a receiver that counts would count double.",
        "Two couriers at work, a retry after a success, a proxy that repeats requests.",
    ),
    Fault.UNEXPECTED_CALLBACK: Explanation(
        "A callback that nobody asked for",
        "A callback came for a job that should have none, or that this check did not submit.",
        "Cancelled, refused or unknown jobs that still deliver; several validators that share one receiver.",
    ),
    Fault.WRONG_SECRET: Explanation(
        "Wrong secret",
        "The callback's X-Callback-Secret is missing or not the one that was given with the job.",
        "Where the secret is stored with the job; proxies that strip headers.",
    ),
    Fault.WRONG_SIGNATURE: Explanation(
        "Wrong signature",
        "The callback's signature does not fit its bytes.",
        "The key in use, the clock of the service, and anything between that changes the body.",
    ),
    Fault.FINAL_WITHOUT_CALLBACK: Explanation(
        "Final, but nothing said about the callback",
        "A poll saw a final status without its callback section: a client cannot know what became of its callback.",
        "The order of the two writes: the final status may be shown only when the first delivery attempt has settled.",
    ),
    Fault.WRONG_CALLBACK_SECTION: Explanation(
        "The status tells another story than the callback",
        "The job's callback section does not say what the receiver saw.",
        "Where the outcome of a delivery is recorded: its status, status code and payload status.",
    ),
    Fault.CALLBACK_AFTER_EXPIRY: Explanation(
        "Callback after its expiry",
        "A callback arrived after the moment up to which the client wanted it.",
        "Whether the expiry is checked at each attempt, and whether the clocks of both machines agree.",
    ),
    Fault.CALLBACK_WITH_ERROR: Explanation(
        "Callback of a success with an error",
        "The callback of a completed job carries an error text.",
        "How the callback's fields are filled: an error left over from an earlier attempt.",
    ),
    Fault.WRONG_ANSWER: Explanation(
        "An answer outside the protocol",
        "The service answered with a status code or a body that the protocol does not allow here.",
        "The finding's sentence; the service's version; a proxy that answers in its place.",
    ),
    Fault.SLOW_ANSWER: Explanation(
        "Too slow for the rate",
        "At a steady rate so many jobs were open at once that further ones had to be left out.",
        "Capacity against the rate that was offered: replicas, batch size, steps. Offer less with --rate.",
    ),
    Fault.NO_ANSWER: Explanation(
        "No answer",
        "The service was there when the checks began, and later gave no whole answer.",
        "Restarts, crashes and connection limits at the time shown; timeouts of a proxy.",
    ),
    Fault.GROWING_MEMORY: Explanation(
        "Memory grows",
        "Memory rose steadily while the load stayed the same.",
        "What is kept per job: pictures, records, connections; retention settings.",
    ),
    Fault.GROWING_LATENCY: Explanation(
        "Latency grows",
        "Jobs took longer and longer at a steady rate: the service does not keep up.",
        "Capacity against the rate that was offered, and queries or scans that grow with history.",
    ),
    Fault.KIT: Explanation(
        "The check itself broke",
        "A defect of the kit or of the machine it ran on; it says nothing about the service.",
        "The finding's sentence; run the check again, and report it to whoever maintains the kit.",
    ),
}


def explain(fault: Fault) -> Explanation:
    """Return the words for a fault."""
    return EXPLANATIONS[fault]
