/** The page: theme, key and tabs. Another tab is a section of index.html, a module, and its lines here. */

import { Server } from "./api.js";
import { startChat } from "./chat.js";
import { startCode } from "./code.js";
import { byId } from "./dom.js";
import { Figures } from "./figures.js";
import { startKey } from "./key.js";
import { startPlan } from "./plan.js";
import { startTabs } from "./tabs.js";
import { startTheme } from "./theme.js";
import { startUsage } from "./usage.js";

const sections = ["code", "chat", "usage", "plan"].map(byId);

startTheme(byId("theme"));
const server = new Server((problem) => revoke(problem));
const figures = new Figures([byId("code-figures"), byId("chat-figures")]);
const setCodeModels = startCode(server, figures);
const setChatModels = startChat(server, figures);
const shows = { usage: startUsage(server), plan: startPlan(server) };
const setShown = startTabs(byId("tabs"), sections, (section) => shows[section.id]?.());
setShown(byId("chat"), false);
const { complain, revoke } = startKey(server, begin);

/** With another key, everything anew; without one, nothing. */
async function begin() {
  if (!server.key) {
    setShown(byId("chat"), false);
    setCodeModels([]);
    for (const show of Object.values(shows)) show();
    return;
  }
  try {
    const { data: models } = await server.get("/v1/models");
    const chats = models.filter((model) => model.chat);
    setShown(byId("chat"), chats.length > 0);
    setChatModels(chats);
    try {
      figures.setPrices(await server.get("/api/prices"));
    } catch {
      // a server without a ledger has no prices; then there is nothing to compare with
    }
    setCodeModels(models);
    for (const [id, show] of Object.entries(shows)) if (!byId(id).hidden) show();
  } catch (problem) {
    if (problem.status !== 401) complain(problem);
  }
}
