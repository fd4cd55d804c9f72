// The playground: a person in, openers of two models side by side, one of them picked, and a conversation with its model.
// No library and no build step. What is known of the conversation is in `chat`; elements are made once and then changed.

const $ = (id) => document.getElementById(id);

/** Some people of the project's own sample: facts, and a first line where they speak first. */
const EXAMPLES = [
  { name: "Table tennis", facts: ["beat the brother at table tennis after nine years", "13, Chengdu", "brother is 19"], greeting: "I WON. 11-9. nine years!!" },
  { name: "Cat in Oulu", facts: ["has a three-legged cat in Oulu", "sends the neighbour apology notes", "speech therapist"], greeting: "I must write the neighbour a new note. It's the fifth." },
  { name: "Night porter", facts: ["night porter in Krakow", "writes what guests say when they lose their keys", "has nine notebooks"] },
  { name: "Midwife", facts: ["midwife in a clinic near Kisumu", "delivered a baby by phone torch last week", "likes gospel on the radio"] },
  { name: "Karaoke", facts: ["47, moved next to a karaoke bar in Daegu", "piano tuner with perfect pitch", "suffers"] },
  { name: "Rubber stamps", facts: ["has 212 rubber stamps from closed offices", "Cologne", "retired postman"], greeting: "Number 212 arrived! A dairy from Thuringia." },
  { name: "Railway timetables", facts: ["Berlin pensioner", "plans trips he never takes", "owns 30 years of railway timetables"] },
  { name: "Quit smoking", facts: ["quit because the granddaughter drew grandpa with a chimney", "68, Tirana", "6 weeks in"], greeting: "Still no smoking. Six weeks, if you want to know." },
  { name: "Foal", facts: ["eleven, in Hokkaido", "allowed to name the foal", "has until sunday"], greeting: "dad says i can name the foal!! but only til sunday" },
  { name: "Escape rooms", facts: ["makes escape rooms in Lisbon", "30", "bored by own puzzles"] },
];
const BUTTONS = 3; // examples with a button of their own; "Surprise me" takes any

const who = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()); // the server stores a hash of it
let takesFeedback = false;
let chat = null; // {model, profile, turns: [{role, content, kind, at, node, ...}]}
let opening = null; // AbortController of the openers being asked for
let replying = null; // and of the reply
let editing = null; // the turn that is written again
let isFollowing = true; // the newest words are in sight

// ------------------------------------------------------------------------------------------------- asking the server

/** What went wrong, in words for the person. */
class Trouble extends Error {}

/** The answer to a request. Throws Trouble, or AbortError where `signal` was used. */
async function ask(path, body, signal, more = {}) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body), signal, ...more } : { headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer. See in its window whether it still runs, start it again, and then try once more.");
  }
  if (!answer.ok) throw new Trouble(await inWords(answer));
  return answer;
}

async function inWords(answer) {
  const said = (await answer.json().catch(() => null))?.error?.message ?? `status ${answer.status}`;
  switch (answer.status) {
    case 401:
      $("key-row").hidden = false;
      return "This server asks for its key. Write it into the field “Key of this server” and try again.";
    case 404: return `The server says: ${said}. Reload the page to see the models it has now.`;
    case 408: return "That took too long. Try again, with fewer openers or a shorter message.";
    case 413: return "That is more text than the server takes. Make it shorter and try again.";
    case 429: return "Many are talking to the friend right now. Wait a few seconds and try again.";
  }
  if (answer.status >= 500) return "The server failed at this; its window says why. Try again, or with other words.";
  return `The server says: ${said}. Change that and try again.`;
}

/** The objects of a server-sent stream, as they come. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Trouble("The connection broke before the reply was whole. Press Retry.");
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Trouble("The model failed at this reply. Press Retry.");
      yield event;
    }
  }
}

// ------------------------------------------------------------------------------------------------- openers

async function open(event) {
  event.preventDefault();
  const profile = $("facts").value.split("\n").map((fact) => fact.trim()).filter(Boolean);
  const greeting = $("greeting").value.trim() || null;
  if (!profile.length && !greeting) {
    trouble("scene", "Write a fact about the person or their first line, or let “Surprise me” do it.");
    $("facts").focus();
    return;
  }
  trouble("scene");
  opening?.abort();
  const mine = (opening = new AbortController());
  const n = $("n").valueAsNumber;
  const scene = { profile, greeting, n };
  if ($("temperature").value) scene.temperature = $("temperature").valueAsNumber;
  if ($("seed").value) scene.seed = $("seed").valueAsNumber;
  const models = [...new Set([$("left").value, $("right").value])].filter(Boolean);
  const columns = models.map((model) => column(model, n));
  $("columns").replaceChildren(...columns);
  $("openers-lead").textContent = "Best first. The bars are the person’s reactions as the reward expects them; score: the more they would like to go on, the higher.";
  $("openers").setAttribute("aria-busy", "true");
  $("open").textContent = "Open again";
  if ($("openers").getBoundingClientRect().top > innerHeight / 2) $("openers").scrollIntoView(); // on a phone they are below
  try {
    const kind = kindOf([...profile, greeting].filter(Boolean), mine.signal);
    const found = await Promise.all(
      models.map(async (model, i) => {
        const { openers } = await (await ask("openers", { model, ...scene }, mine.signal)).json();
        for (const opener of openers) opener.kind = opener.score === null ? await kind : "model";
        if (mine === opening) fill(columns[i], model, scene, openers);
        return openers;
      }),
    );
    markBest(found.flat());
    tell(`${found.flat().length} openers are there.`);
  } catch (error) {
    if (mine !== opening) return; // asked anew: the newer one says how it went
    mine.abort();
    for (const waiting of document.querySelectorAll(".waiting")) waiting.remove();
    if (error.name === "AbortError") tell("Stopped.");
    else trouble("scene", error.message);
  } finally {
    if (mine === opening) {
      opening = null;
      $("openers").removeAttribute("aria-busy");
    }
  }
}

/** "care" or "honesty" where these words of a person get a fixed answer, else "model". */
async function kindOf(words, signal) {
  const turns = words.map((content) => ({ role: "user", content }));
  return (await heard(turns, signal))?.kind ?? "model";
}

function column(model, n) {
  const section = make("section", "column");
  const title = make("h3", "", model);
  const list = make("ol");
  list.append(...Array.from({ length: n }, () => make("li", "waiting")));
  section.append(title, list);
  return section;
}

function fill(section, model, scene, openers) {
  section.querySelector("ol").replaceChildren(
    ...openers.map((opener) => {
      const card = copy("card-template");
      card.querySelector(".opener").textContent = opener.opener || "(nothing said)";
      card.querySelector(".score").textContent = opener.score === null ? "" : `score ${signed(opener.score)}`;
      card.querySelector(".unfinished").hidden = opener.ended;
      card.querySelector(".fixed").hidden = opener.kind === "model";
      const reactions = card.querySelector(".reactions");
      if (opener.reactions) reactions.append(...Object.entries(opener.reactions).map(([label, part]) => bar(label, part)));
      else reactions.remove();
      const pick = card.querySelector(".pick");
      pick.setAttribute("aria-label", `Chat on: ${opener.opener} (${model})`);
      pick.disabled = !opener.opener;
      pick.addEventListener("click", () => begin(card, model, scene, opener));
      opener.card = card;
      return card;
    }),
  );
}

/** A reaction: its name, and a bar as long as it is likely. */
function bar(label, part) {
  const percent = `${Math.round(100 * part)} %`;
  const item = make("li");
  const track = make("div", "track");
  item.dataset.label = label;
  track.append(make("i"));
  track.style.setProperty("--part", `${100 * part}%`);
  item.append(make("span", "", label), make("span", "", percent), track);
  return item;
}

function markBest(openers) {
  const scored = openers.filter((opener) => opener.score !== null);
  if (scored.length < 2) return;
  const best = scored.reduce((a, b) => (b.score > a.score ? b : a));
  best.card.querySelector(".best").hidden = false;
}

/** Arrows go from opener to opener: up and down in a column, left and right between the two. */
function walk(event) {
  const card = event.target.closest(".card");
  if (!card || !event.target.matches(".pick")) return;
  const lists = [...$("columns").querySelectorAll("ol")];
  let x = lists.indexOf(card.parentElement);
  let y = [...card.parentElement.children].indexOf(card);
  if (event.key === "ArrowDown") y += 1;
  else if (event.key === "ArrowUp") y -= 1;
  else if (event.key === "ArrowRight") x += 1;
  else if (event.key === "ArrowLeft") x -= 1;
  else return;
  event.preventDefault();
  const column = lists[x]?.children;
  column?.[Math.min(Math.max(y, 0), column.length - 1)]?.querySelector(".pick")?.focus();
}

// ------------------------------------------------------------------------------------------------- conversation

function begin(card, model, scene, opener) {
  end();
  document.querySelector(".card.picked")?.classList.remove("picked");
  card.classList.add("picked");
  chat = { model, scene, turns: [] };
  $("turns").replaceChildren();
  $("empty").hidden = true;
  $("mood").hidden = true;
  $("with").hidden = false;
  $("with").textContent = `with ${model}`;
  trouble("chat");
  leaveEditing();
  if (scene.greeting) add("user", scene.greeting);
  const turn = add("assistant", opener.opener, opener.kind);
  if (scene.greeting) look();
  showActions();
  $("say").disabled = $("send").disabled = false;
  $("say").focus();
  tell(`You chat with ${model}. It said: ${turn.content}`);
}

/** Leaves the conversation there is, if any. */
function end() {
  replying?.abort();
  replying = null;
  const last = chat?.turns.at(-1);
  if (last?.role === "assistant") feedback("ended", last);
}

function send(event) {
  event.preventDefault();
  const content = $("say").value.trim();
  if (!chat || replying || !content) return;
  $("say").value = "";
  $("say").focus();
  if (editing?.role === "assistant") {
    reword(editing, content);
    return;
  }
  if (editing) {
    cut(chat.turns.indexOf(editing));
    leaveEditing();
  } else if (chat.turns.at(-1).role === "assistant") {
    const last = chat.turns.at(-1);
    feedback("continued", last, { reply_seconds: (Date.now() - last.at) / 1000, reply_words: content.split(/\s+/).length });
  }
  isFollowing = true;
  add("user", content);
  answer();
}

/** The last thing the friend said, once more. */
function retry() {
  const old = chat.turns.at(-1);
  feedback("retry", old);
  cut(chat.turns.length - 1);
  $("say").focus();
  answer(old.content);
}

/** What the friend should have said, in the person's words: feedback, and what the conversation goes on from. */
function reword(turn, content) {
  if (content !== turn.content) feedback("edit", turn, { instead: content });
  turn.content = content;
  turn.isReworded = true;
  leaveEditing();
  show(turn);
  showActions();
}

/** Writes the friend's next turn. `old` stands again where nothing comes. */
async function answer(old = "") {
  trouble("chat");
  const mine = (replying = new AbortController());
  const turn = add("assistant", "");
  turn.node.classList.add("writing");
  show(turn);
  showActions();
  look(turn);
  try {
    for await (const piece of pieces(turn, mine.signal)) {
      turn.content += piece;
      show(turn);
    }
  } catch (error) {
    turn.isStopped = true;
    if (mine === replying && error.name !== "AbortError") trouble("chat", error.message);
    if (!turn.content) turn.content = old;
  }
  turn.at = Date.now();
  turn.node.classList.remove("writing");
  show(turn);
  if (mine !== replying) return; // another conversation has begun
  replying = null;
  showActions();
  tell(turn.isStopped ? "Stopped." : `${chat.model} says: ${turn.content || "nothing"}`);
}

/** What the model says as it comes: a reply, or, where the friend has not spoken yet, an opener in one piece. */
async function* pieces(turn, signal) {
  const { model, scene } = chat;
  const messages = before(turn);
  if (!messages.some((message) => message.role === "assistant") && messages.length < 2) {
    const asked = { model, profile: scene.profile, greeting: scene.greeting };
    const { openers } = await (await ask("openers", asked, signal)).json();
    yield openers[0].opener;
    return;
  }
  const asked = { model, messages, profile: scene.profile, mood: $("use-mood").checked, stream: true };
  for await (const event of events(await ask("v1/chat/completions", asked, signal))) {
    const piece = event.choices[0]?.delta.content;
    if (piece) yield piece;
  }
}

/** {kind, mood} of turns; null where the server does not say, or the page is left before it has said all: the reply's own
    request says what is wrong. */
async function heard(turns, signal) {
  try {
    return await (await ask("mood", { turns }, signal)).json();
  } catch {
    return null;
  }
}

/** Asks what the person's messages sound like, and whether `turn` is what a model says or a fixed answer. */
async function look(turn) {
  const mine = chat;
  const turns = before(turn);
  if (!turns.some(({ role }) => role === "user")) return;
  const answer = await heard(turns);
  if (!answer || mine !== chat) return;
  const { kind, mood } = answer;
  $("mood").hidden = false;
  $("mood-name").textContent = mood.name;
  measure("low", mood.negative);
  measure("bright", mood.positive);
  if (!turn) return;
  turn.kind = kind;
  show(turn);
  showActions();
}

function measure(id, part) {
  const percent = Math.round(100 * part);
  $(id).style.setProperty("--part", `${percent}%`);
  $(id).setAttribute("aria-valuenow", percent);
  $(id).setAttribute("aria-valuetext", `${percent} %`);
}

function add(role, content, kind = "model") {
  const node = copy("turn-template");
  const turn = { role, content, kind, at: Date.now(), node, isStopped: false };
  node.classList.add(role === "user" ? "person" : "friend");
  on(node, ".retry", retry);
  on(node, ".edit", () => edit(turn));
  on(node, ".reword", () => edit(turn));
  on(node, ".up", () => vote(turn, "up"));
  on(node, ".down", () => vote(turn, "down"));
  chat.turns.push(turn);
  $("turns").append(node);
  show(turn);
  return turn;
}

function show(turn) {
  const isWriting = turn.node.classList.contains("writing");
  const remark = { care: " · a fixed answer, not the model’s", honesty: " · a fixed answer, not the model’s" }[turn.kind] ?? "";
  turn.node.classList.toggle("care", turn.kind === "care");
  turn.node.classList.toggle("honesty", turn.kind === "honesty");
  turn.node.querySelector(".who").textContent =
    turn.role === "user" ? "You" : `${chat.model}${remark}${turn.isStopped ? " · stopped" : ""}${turn.isReworded ? " · in your words" : ""}`;
  turn.node.querySelector(".text").textContent = turn.content || (isWriting ? "" : "(nothing said)");
  follow();
}

/** Keeps the newest words in sight, unless the person has scrolled back (which `start` notices). */
function follow() {
  const box = $("messages");
  if (isFollowing) box.scrollTop = box.scrollHeight;
}

/** Which buttons stand under which turn, and whether one can send or stop. */
function showActions() {
  $("send").hidden = replying !== null;
  $("stop").hidden = replying === null;
  const last = chat?.turns.at(-1);
  const first = chat?.turns.findIndex(({ role }) => role === "assistant");
  const mine = chat?.turns.findLastIndex(({ role }) => role === "user");
  chat?.turns.forEach((turn, i) => {
    const canVote = canShare(turn) && !turn.node.classList.contains("writing");
    const hide = (button, hidden) => (turn.node.querySelector(button).hidden = hidden);
    hide(".up", !canVote);
    hide(".down", !canVote);
    hide(".reword", replying !== null || !canVote);
    hide(".retry", replying !== null || turn !== last || turn.role !== "assistant" || turn.kind !== "model");
    hide(".edit", replying !== null || i !== mine || i < first);
  });
  follow();
}

function edit(turn) {
  editing = turn;
  $("editing").hidden = false;
  $("editing-words").textContent =
    turn.role === "user"
      ? "Your last message again: the friend will answer what you make of it."
      : "What should the friend have said? Your words take the place of its own.";
  $("say").value = turn.content;
  $("say").focus();
}

function leaveEditing() {
  if (editing) $("say").value = "";
  editing = null;
  $("editing").hidden = true;
  $("say").focus();
}

/** Takes the turns from `place` on out of the conversation. */
function cut(place) {
  for (const turn of chat.turns.splice(place)) turn.node.remove();
}

/** The turns before one (all, without it) as the server takes them. */
function before(turn) {
  const place = chat.turns.indexOf(turn);
  return chat.turns
    .slice(0, place < 0 ? undefined : place)
    .filter(({ content }) => content)
    .map(({ role, content }) => ({ role, content }));
}

// ------------------------------------------------------------------------------------------------- feedback

/** Whether what is done with a turn may be told to the server: what a model said, whole, and the person agreed. */
function canShare(turn) {
  const isModels = turn.role === "assistant" && turn.kind === "model" && !turn.isStopped && !turn.isReworded;
  return takesFeedback && $("share").checked && isModels && Boolean(turn.content);
}

function vote(turn, direction) {
  for (const each of ["up", "down"]) {
    turn.node.querySelector(`.${each}`).setAttribute("aria-pressed", each === direction);
  }
  if (turn.vote !== direction) feedback(`thumb_${direction}`, turn);
  turn.vote = direction;
}

/** A row of data/feedback.py, as far as the page knows it. */
async function feedback(kind, turn, more = {}) {
  if (!canShare(turn)) return;
  const row = {
    kind,
    model: chat.model,
    profile: chat.scene.profile,
    context: before(turn).map(({ content }) => content),
    response: turn.content,
    who,
    ...more,
  };
  try {
    await ask("feedback", row, undefined, { keepalive: true }); // also where the page is being left
  } catch (error) {
    trouble("chat", `This was not stored. ${error.message}`);
  }
}

// ------------------------------------------------------------------------------------------------- small things

function make(tag, name = "", text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
}

function copy(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function on(node, button, action) {
  node.querySelector(button).addEventListener("click", action);
}

/** "+0.31", with a real minus. */
function signed(score) {
  return `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;
}

/** Tells what went wrong under the scene or the chat; nothing, without words. */
function trouble(place, words = "") {
  $(`${place}-trouble`).textContent = words;
  $(`${place}-trouble`).hidden = !words;
}

/** Tells a screen reader what has come: the finished reply, not every piece of it. */
function tell(words) {
  $("told").textContent = words;
}

function fillScene({ facts, greeting = "" }) {
  $("facts").value = facts.join("\n");
  $("greeting").value = greeting;
}

function surprise() {
  const others = EXAMPLES.filter(({ facts }) => facts.join("\n") !== $("facts").value);
  const example = others[Math.floor(Math.random() * others.length)];
  fillScene(example);
  tell(`${example.name}: ${example.facts.join(", ")}`);
}

async function start() {
  for (const example of EXAMPLES.slice(0, BUTTONS)) {
    const button = make("button", "quiet", example.name);
    button.type = "button";
    button.addEventListener("click", () => fillScene(example));
    $("surprise").before(button);
  }
  fillScene(EXAMPLES[0]);
  $("surprise").addEventListener("click", surprise);
  $("scene").addEventListener("submit", open);
  $("columns").addEventListener("keydown", walk);
  $("compose").addEventListener("submit", send);
  $("stop").addEventListener("click", () => {
    replying?.abort();
    $("say").focus();
  });
  $("leave").addEventListener("click", leaveEditing);
  $("share").addEventListener("change", showActions);
  $("say").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("compose").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (replying) replying.abort();
    else if (opening) opening.abort();
    else if (editing) leaveEditing();
  });
  $("messages").addEventListener("scroll", ({ target }) => {
    isFollowing = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
  });
  addEventListener("pagehide", end);
  try {
    const { models, feedback } = await (await ask("health")).json();
    const options = () => models.map((model) => new Option(model));
    $("left").append(...options());
    $("right").append(...options(), new Option("no other", ""));
    const [left, right] = models.includes("friend-sft") && models.includes("friend-ppo") ? ["friend-sft", "friend-ppo"] : models;
    $("left").value = left;
    $("right").value = right ?? "";
    $("open").disabled = false;
    takesFeedback = feedback === true;
    $("share-row").hidden = !takesFeedback;
  } catch (error) {
    trouble("scene", `${error.message} Then reload the page.`);
  }
}

start();
