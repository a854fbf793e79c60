// What tests/6_clients/client_browser.py asks of a page: play an address in one of the players, seek, and tell
// what is shown and heard. Every function that waits gives a promise.
"use strict";

const video = document.querySelector("video");
/** Whatever a player or the browser complained of, one line each. */
const troubles = [];
/** When the picture on the screen begins, by its time stamp. */
let mediaTime = null;
/** Whether dash.js said that it is at the end, since the last seek or play. */
let over = false;
/** Milliseconds that one step may take. Less than client_browser.py waits, so that the state is told. */
const PATIENCE = 30_000;

const complain = (who, what) => troubles.push(`${who}: ${what}`);
video.addEventListener("error", () => complain("video", `${video.error.code} ${video.error.message}`));
addEventListener("error", (event) => complain("page", event.message));
addEventListener("unhandledrejection", (event) => complain("page", event.reason));

const players = {
  plain(url, start) {
    video.src = start ? `${url}#t=${start}` : url;
  },
  hls(url, start) {
    const player = new Hls({ startPosition: start });
    player.on(Hls.Events.ERROR, (_, told) => told.details === "aborted" || complain("hls.js", `${told.details} ${told.error ?? ""}`));
    player.loadSource(url);
    player.attachMedia(video);
  },
  dash(url, start) {
    const player = dashjs.MediaPlayer().create();
    for (const kind of ["error", "playbackError"]) {
      player.on(kind, (told) => complain("dash.js", `${kind} ${told.error?.code} ${told.error?.message}`));
    }
    // It looks every 200 ms, and where it finds the time at the end before Chromium has said `ended`, it pauses
    // the element there and says so itself (dash.js 5.2, PlaybackController): then `ended` never comes.
    player.on("playbackEnded", ({ isLast }) => (over ||= isLast));
    player.initialize(video, url, false, start);
  },
  async shaka(url, start) {
    shaka.polyfill.installAll();
    const player = new shaka.Player();
    player.addEventListener("error", ({ detail }) => complain("shaka", `${detail.code} ${detail.data}`));
    await player.attach(video);
    await player.load(url, start);
  },
};

const happens = (target, name) => new Promise((done) => target.addEventListener(name, done, { once: true }));

/** Waits for what comes first: a promise, an error of the element or of a player, or the end of patience. */
function orTrouble(promise) {
  const before = troubles.length;
  return new Promise((done) => {
    const late = performance.now() + PATIENCE;
    const look = setInterval(() => {
      if (performance.now() > late) complain("page", `nothing comes any more: ${JSON.stringify(state())}`);
      if (troubles.length > before) end();
    }, 50);
    const end = () => {
      clearInterval(look);
      done();
    };
    promise.then(end, (error) => {
      complain("player", error);
      end();
    });
  });
}

/** Opens an address at a time; done when its picture is shown, or something is wrong. */
async function open(kind, url, start) {
  await orTrouble(Promise.all([painted(start), players[kind](url, start)]));
  return shown();
}

function state() {
  const { currentTime, duration, paused, seeking, readyState, networkState, videoWidth, videoHeight } = video;
  const quality = video.getVideoPlaybackQuality();
  return {
    currentTime,
    duration,
    mediaTime,
    paused,
    seeking,
    ended: video.ended || (over && paused),
    readyState,
    networkState,
    videoWidth,
    videoHeight,
    frames: quality.totalVideoFrames,
    dropped: quality.droppedVideoFrames,
    audioBytes: video.webkitAudioDecodedByteCount,
    buffered: Array.from({ length: video.buffered.length }, (_, i) => [video.buffered.start(i), video.buffered.end(i)]),
    troubles,
  };
}

/** A picture of about this time is on the screen; one of before a seek may still be on its way there. */
function painted(time) {
  return new Promise((done) => {
    const look = (_, told) => {
      mediaTime = told.mediaTime;
      Math.abs(mediaTime - time) < 0.5 ? done() : video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
  });
}

/** Seeks, paused, by a second or more; gives the state and what is shown then. */
async function seek(time) {
  video.pause();
  over = false;
  const there = Promise.all([happens(video, "seeked"), painted(time)]);
  video.currentTime = time;
  await orTrouble(there);
  await new Promise(requestAnimationFrame);
  return shown();
}

/** The picture on the screen in its own size, as the address of a PNG. */
function shown() {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return { ...state(), picture: canvas.toDataURL("image/png") };
}

let tap;

/** Plays for some seconds, or to the end; gives the state, and the sound that was heard last. */
async function play(seconds) {
  if (!tap) {
    const context = new AudioContext({ sampleRate: 48000 });
    tap = new AnalyserNode(context, { fftSize: 8192 });
    new MediaElementAudioSourceNode(context, { mediaElement: video }).connect(tap).connect(context.destination);
    await context.resume();
  }
  over = false;
  await orTrouble(video.play());
  const until = video.currentTime + seconds;
  await orTrouble(
    new Promise((done) => {
      const look = setInterval(() => {
        if (video.currentTime >= until || state().ended) {
          clearInterval(look);
          done();
        }
      }, 20);
    }),
  );
  const samples = new Float32Array(tap.fftSize);
  tap.getFloatTimeDomainData(samples);
  return { ...state(), samples: Array.from(samples) };
}
